import inspect
import io
import math

import pytest
from PIL import Image
from rich.console import Console

from lightning_stiffness import StiffnessError, stopping
from lightning_stiffness.balance import save_readings
from lightning_stiffness.history import History, ProbeSummary
from lightning_stiffness.saved_runs import CRITERIA, chosen_criteria, find_histories, judgeable, load_runs, report_runs
from lightning_stiffness.stopping import StiffnessDrop, ValidationPatience
from tests.test_verdicts import ACCURACIES, LOSSES, logging_history
from tests.toy_balance import toy_readings
from tests.toy_history import overfitting_history, spreading_history, toy_probe

LOGGED = logging_history(val_loss=LOSSES, val_acc=ACCURACIES)


@pytest.fixture
def runs(tmp_path):
    """Two runs with logs around their histories."""
    LOGGED.save(tmp_path / "b" / "stiffness.jsonl")
    overfitting_history(8).save(tmp_path / "a" / "version_0" / "val_stiffness.jsonl")
    (tmp_path / "a" / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    (tmp_path / "a" / "empty.jsonl").write_text("")
    (tmp_path / "a" / "noise.jsonl").write_bytes(b"\xff\xfe\x00\n")
    (tmp_path / "a" / "list.jsonl").write_text("[1, 2]\n")
    return tmp_path


def reported(*arguments, **options):
    file = io.StringIO()
    pictures = report_runs(*arguments, console=Console(file=file, width=100), **options)
    return file.getvalue(), pictures


def test_histories_are_found_below_folders_and_other_files_left_alone(runs):
    expected = [runs / "a" / "version_0" / "val_stiffness.jsonl", runs / "b" / "stiffness.jsonl"]
    assert find_histories([runs]) == expected
    assert find_histories([expected[1], runs]) == [expected[1], expected[0]]


def test_what_is_no_run_is_said(runs):
    with pytest.raises(StiffnessError, match=r"no file or folder .*nowhere"):
        find_histories([runs, runs / "nowhere"])
    with pytest.raises(StiffnessError, match=r"metrics\.jsonl is not the history of a run"):
        find_histories([runs / "a" / "metrics.jsonl"])
    (runs / "c").mkdir()
    with pytest.raises(StiffnessError, match=r"no history below.*StiffnessMonitor writes one"):
        find_histories([runs / "c"])


def test_every_criterion_of_the_package_is_known_by_its_name():
    exported = {name for name in stopping.__all__ if inspect.isclass(getattr(stopping, name))}
    rules = {name for name in exported if "history" in str(inspect.signature(getattr(stopping, name).__call__))}
    assert rules - {"Any", "All", "Criterion"} == {name.partition(".")[0] for name in CRITERIA}
    for name, criterion in CRITERIA.items():
        assert type(criterion).__name__ == name.partition(".")[0]
    assert list(chosen_criteria(["validation-patience", "LEAVEONEOUT.for_loss"])) == [
        "ValidationPatience",
        "LeaveOneOut.for_loss",
    ]
    with pytest.raises(StiffnessError, match=r"no criterion Sideways; choose from ConfirmedDrop, .*LabelWave"):
        chosen_criteria(["StiffnessDrop", "Sideways"])


def test_what_a_history_carries_decides_what_is_judged():
    rules = {"drop": StiffnessDrop(), "val": ValidationPatience(), "other": ValidationPatience("val_f1")}
    judged, others = judgeable(LOGGED, rules)
    assert list(judged) == ["val"]
    assert list(others) == ["drop", "other"]
    assert "val_f1" in others["other"]
    judged, others = judgeable(spreading_history([0.5] * 9), rules)
    assert list(judged) == ["drop"]


def test_each_run_is_described_and_judged(runs):
    text, pictures = reported([runs])
    assert pictures == []
    first, second = text.split(str(runs / "b"))
    assert "version_0/val_stiffness.jsonl" in first.replace("\n", "")
    assert "40 samples, 10 classes, train. 9 readings from epoch 0 to 8: within-class stiffness 0.550" in first
    assert "ValidationPatience" in second.partition("Not judged")[0]
    assert "LeaveOneOut" not in second.partition("Not judged")[0]
    assert "Not judged: LeaveOneOut: " in second
    assert "best 0.5" in second


def test_chosen_criteria_are_shown_even_without_a_signal(runs):
    text, _ = reported([runs / "b"], ["leave-one-out"])
    assert "│ LeaveOneOut " in text
    assert "ValidationPatience" not in text
    assert "Not judged" not in text


@pytest.mark.slow
def test_pictures_are_written_one_for_each_run(runs, tmp_path):
    _, pictures = reported([runs / "b"], picture=tmp_path / "new" / "run.png")
    assert pictures == [tmp_path / "new" / "run.png"]
    text, pictures = reported([runs], picture=tmp_path / "run.png")
    assert pictures == [tmp_path / "run_1.png", tmp_path / "run_2.png"]
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 500
        assert path.name in text
    with pytest.raises(StiffnessError, match=r"must end in one of .*png.*, but is called run\.doc"):
        reported([runs], picture=tmp_path / "run.doc")


def test_a_run_without_readings_and_one_of_batches(tmp_path):
    History(ProbeSummary("batch", 3, (), math.log(3))).save(tmp_path / "batches" / "stiffness.jsonl")
    text, _ = reported([tmp_path])
    assert "Probe: samples of the training batches, 3 classes, batch. 0 readings." in text
    (tmp_path / "batches" / "stiffness.jsonl").unlink()
    History(toy_probe()).save(tmp_path / "stiffness.jsonl")
    text, _ = reported([tmp_path], picture=tmp_path / "run.png")
    assert "12 samples, 3 classes, train. 0 readings." in text
    assert not (tmp_path / "run.png").exists()


def test_runs_are_loaded_with_what_stands_beside_them(runs):
    (runs / "b" / "stiffness_decision.json").write_text('{"stopped": true}')
    first, second = load_runs([runs])
    assert (first.decision, second.decision) == (None, {"stopped": True})
    assert len(second.history) == len(LOGGED)


def test_the_file_of_a_balancer_is_a_run_where_no_history_stands_beside_it(runs):
    for place in (runs / "b", runs / "d"):
        place.mkdir(exist_ok=True)
        save_readings(place / "balancing.jsonl", toy_readings(2))
    found = [runs / "a" / "version_0" / "val_stiffness.jsonl", runs / "b" / "stiffness.jsonl"]
    assert find_histories([runs]) == [*found, runs / "d" / "balancing.jsonl"]
    assert find_histories([runs / "b" / "balancing.jsonl"]) == [runs / "b" / "balancing.jsonl"]
    assert [len(run.balance) for run in load_runs([runs])] == [0, 2, 2]


def test_of_two_histories_in_a_folder_the_first_has_the_readings_of_the_balancer(runs):
    overfitting_history(3).save(runs / "b" / "val_stiffness.jsonl")
    save_readings(runs / "b" / "balancing.jsonl", toy_readings(2))
    assert [len(run.balance) for run in load_runs([runs / "b"])] == [2, 0]


def test_the_classes_of_a_balancer_are_printed(runs):
    save_readings(runs / "d" / "balancing.jsonl", toy_readings(2))
    text, _ = reported([runs / "d"])
    assert "Classes, 2 readings of a balancer" in text
    assert "the network confuses" in text
    assert "Probe:" not in text
    save_readings(runs / "b" / "balancing.jsonl", toy_readings(2))
    both, _ = reported([runs / "b"])
    assert "Classes, 2 readings" in both
    assert "Probe:" in both
