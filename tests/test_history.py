import io
import json
import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness import json_lines
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History, ProbeSummary
from tests.toy_history import Toy, overfitting_history, toy_history, toy_probe, toy_reading, toy_stiffness

NAMES = ("cat", "\N{SNOWMAN}", "dog")
HISTORY = toy_history([0.5, 0.6, 0.4], [2.0, math.nan, math.inf], Toy(class_names=NAMES, missing=(1,)))


def tensors(reading):
    for stiffness in (reading.cosine, reading.sign):
        yield from (stiffness.matrix, stiffness.within_replicates, stiffness.between_replicates)


def same_number(left, right):
    return left == right or (math.isnan(left) and math.isnan(right))


def assert_equal(found, expected, dtype=torch.float64):
    assert found.probe == expected.probe
    assert found.series("step").tolist() == expected.series("step").tolist()
    for left, right in zip(found, expected, strict=True):
        assert left.metrics().keys() == right.metrics().keys()
        assert all(same_number(left.metrics()[name], right.metrics()[name]) for name in left.metrics())
        assert (left.epoch, left.loss_se) == (right.epoch, right.loss_se)
        for one, other in zip(tensors(left), tensors(right), strict=True):
            assert one.dtype == dtype
            assert torch.equal(one.nan_to_num(9), other.to(dtype).nan_to_num(9))


def test_it_is_a_sequence():
    assert len(HISTORY) == 3
    assert HISTORY[-1].step == 20
    assert [reading.step for reading in HISTORY] == [0, 10, 20]
    assert isinstance(HISTORY[1:], History)
    assert [reading.step for reading in HISTORY[1:]] == [10, 20]
    assert HISTORY[1] in HISTORY
    assert HISTORY.index(HISTORY[1]) == 1
    assert repr(History(toy_probe())) == "History(0 readings of a train probe with 3 classes)"


def test_series_are_the_numbers_of_the_readings():
    assert HISTORY.series("within").tolist() == [0.5, 0.6, 0.4]
    assert HISTORY.series("within_sign").tolist() == pytest.approx([math.tanh(1.5), math.tanh(1.8), math.tanh(1.2)])
    assert HISTORY.series("between")[0] == -0.1
    assert HISTORY.series("epoch").tolist() == [0.0, 1.0, 2.0]
    assert HISTORY.series("loss").dtype == torch.float64
    assert HISTORY.series("loss").isnan().tolist() == [False, True, False]
    for name in HISTORY[0].metrics():
        assert HISTORY.series(name).shape == (3,)
    assert len(History(toy_probe()).series("within")) == 0
    with pytest.raises(StiffnessError, match="no series 'with_in'; choose one of step, epoch, within"):
        HISTORY.series("with_in")


def test_metrics_name_cosine_and_sign_and_their_errors():
    reading = toy_reading(1, 0.5)
    cosine, sign = reading.cosine, reading.sign
    found = [cosine.within, cosine.within_se, cosine.between, cosine.between_se]
    found += [sign.within, sign.within_se, sign.between, sign.between_se, 0.0, 1.0, 0.5]
    assert list(reading.metrics().values()) == found


@pytest.mark.parametrize("step", [20, 15, -1])
def test_steps_increase(step):
    history = toy_history([0.5, 0.6, 0.4])
    with pytest.raises(StiffnessError, match=f"later step than the last one, 20, but is of step {step}"):
        history.append(replace(toy_reading(9, 0.5), step=step))
    assert len(history) == 3


def test_a_reading_of_another_probe_is_refused():
    history = toy_history([0.5])
    with pytest.raises(StiffnessError, match=r"shape \(3, 3\).*\(12,\), but has \(4, 4\)"):
        history.append(toy_reading(1, 0.5, toy=Toy(num_classes=4)))
    with pytest.raises(StiffnessError, match=r"but has \(3, 3\) and \(15,\)"):
        history.append(replace(toy_reading(1, 0.5), sign=toy_stiffness(0.5, 0.0, 1, Toy(per_class=5))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "test"}, "mode must be"),
        ({"class_names": ("a", "b")}, "class_names must have one entry for each of the 3 classes, but has 2"),
        ({"superclasses": (0, 0, 1, 1)}, "superclasses .* has 4"),
    ],
)
def test_a_probe_summary_is_checked(change, message):
    with pytest.raises(StiffnessError, match=message):
        replace(toy_probe(), **change)


def test_truncated_keeps_what_was_known_at_a_step():
    assert [len(HISTORY.truncated(step)) for step in (-1, 0, 9, 10, 99)] == [0, 1, 1, 2, 3]
    taken_up = HISTORY.truncated(10)
    taken_up.append(toy_reading(2, 0.7))
    assert HISTORY[-1].cosine.within == 0.4


def test_within_change_is_the_paired_jackknife():
    """Against plain loops over classes and samples."""
    history = toy_history([0.5, 0.7])
    first, last = (reading.cosine.within_replicates.tolist() for reading in history)
    variance = 0.0
    for label in range(3):
        changes = [b - a for a, b, own in zip(first, last, history.probe.strata, strict=True) if own == label]
        mean = sum(changes) / len(changes)
        variance += (len(changes) - 1) / len(changes) * sum((change - mean) ** 2 for change in changes)
    change = history.within_change(0, -1)
    assert change.value == pytest.approx(0.2)
    assert change.se == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert history.within_change(1, 1).se == 0
    assert history.within_change(1, 0).value == pytest.approx(-0.2)


def test_what_the_samples_share_is_no_error():
    before = toy_reading(0, 0.5)
    after = replace(before, step=1, cosine=replace(before.cosine, within=0.4))
    assert History(toy_probe(), [before, after]).within_change(0, 1).se == 0


def test_the_change_of_unknown_replicates_has_an_unknown_error():
    reading = toy_reading(0, 0.5)
    unknown = replace(reading.cosine, within_replicates=torch.full((12,), math.nan))
    history = History(toy_probe(), [reading, replace(reading, step=1, cosine=unknown)])
    assert math.isnan(history.within_change(0, 1).se)


def test_state_dict_passes_through_a_safe_checkpoint_bit_for_bit():
    buffer = io.BytesIO()
    torch.save(HISTORY.state_dict(), buffer)
    buffer.seek(0)
    assert_equal(History.from_state_dict(torch.load(buffer, weights_only=True)), HISTORY)


def test_state_dict_of_an_empty_history():
    assert len(History.from_state_dict(History(toy_probe()).state_dict())) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 2 or older, but this is of 3. Update"),
        ({"version": None}, "of None"),
        ({"probe": {}}, "does not describe a probe"),
        ({"readings": [{"step": 1}]}, "no record of a reading"),
        ({"readings": [3]}, "no record of a reading"),
    ],
)
def test_a_foreign_state_dict_is_refused(change, message):
    with pytest.raises(StiffnessError, match=message):
        History.from_state_dict({**HISTORY.state_dict(), **change})


def test_save_and_load(tmp_path):
    HISTORY.save(tmp_path / "run" / "stiffness.jsonl")
    assert_equal(History.load(tmp_path / "run" / "stiffness.jsonl"), HISTORY, torch.float32)
    HISTORY[:1].save(str(tmp_path / "run" / "stiffness.jsonl"))
    assert len(History.load(str(tmp_path / "run" / "stiffness.jsonl"))) == 1


def test_every_option_of_the_probe_is_in_the_file(tmp_path):
    for probe in (
        ProbeSummary("cross", 2, (0, 1, 2, 3), math.nan, ("a", "b"), (1, 0)),
        ProbeSummary("val", 2, (0, 0, 1, 1), 0.1 + 0.2),
    ):
        History(probe).save(tmp_path / "file")
        found = History.load(tmp_path / "file").probe
        assert replace(found, label_entropy=0.0) == replace(probe, label_entropy=0.0)
        assert same_number(found.label_entropy, probe.label_entropy)


def test_the_header_says_what_the_file_is(tmp_path):
    HISTORY.save(tmp_path / "file")
    header = json.loads((tmp_path / "file").read_text(encoding="utf-8").splitlines()[0])
    assert (header["format"], header["version"]) == ("lightning-stiffness history", 2)
    assert header["probe"]["strata"] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_file_grows_line_by_line_to_what_save_writes(tmp_path):
    history = History(HISTORY.probe)
    for reading in HISTORY:
        history.append(reading)
        history.append_line(tmp_path / "grown")
        assert len(History.load(tmp_path / "grown")) == len(history)
    HISTORY.save(tmp_path / "saved")
    assert (tmp_path / "grown").read_bytes() == (tmp_path / "saved").read_bytes()


def test_append_line_writes_the_new_line_only(tmp_path, monkeypatch):
    HISTORY[:2].save(tmp_path / "file")
    monkeypatch.setattr(json_lines, "replace", lambda *_: pytest.fail("wrote everything"))
    HISTORY.append_line(tmp_path / "file")
    assert len(History.load(tmp_path / "file")) == 3


@pytest.mark.parametrize("kept", [0, 5, 300, -1, -40])
def test_a_crash_while_writing_costs_one_reading_and_the_next_write_mends_it(tmp_path, kept):
    path = tmp_path / "file"
    HISTORY[:2].save(path)
    whole = path.read_bytes()
    two = whole[: whole[:-1].rindex(b"\n") + 1]
    last = whole[len(two) :]
    path.write_bytes(two + last[:kept])
    assert len(History.load(path)) == (2 if kept == -1 else 1)
    HISTORY.append_line(path) if kept else HISTORY.save(path)
    assert_equal(History.load(path), HISTORY, torch.float32)


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def test_damage_before_the_last_line_is_named(tmp_path):
    path = tmp_path / "file"
    HISTORY.save(path)
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], lines[2][:50] + b"\n", lines[3]]))
    with pytest.raises(StiffnessError, match="line 3: damaged"):
        History.load(path)
    path.write_bytes(b"".join([lines[0], lines[1], lines[1], lines[2]]))
    with pytest.raises(StiffnessError, match="line 3: A reading must be of a later step"):
        History.load(path)
    path.write_bytes(b"".join([lines[0], lines[1], b'{"step": 3}\n']))
    with pytest.raises(StiffnessError, match="line 3: This is no record of a reading"):
        History.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "must begin with its header"),
        (b'{"format": "lightning-stiff', "must begin with its header"),
        (b'{"format": "something else", "version": 1}\n', "must begin with its header"),
        (b"[1, 2]\n", "must begin with its header"),
        (b'{"format": "lightning-stiffness history", "version": 3}\n', "line 1: .*of 3. Update"),
        (b'{"format": "lightning-stiffness history", "version": 1}\n', "line 1: This does not describe a probe"),
        (b'{"format": "lightning-stiffness history", "version": 1, "probe": {"mode": "x"}}\n', "line 1: "),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, header, message):
    (tmp_path / "file").write_bytes(header)
    with pytest.raises(StiffnessError, match=message):
        History.load(tmp_path / "file")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        History.load(tmp_path / "file")


def test_the_toy_history_overfits():
    history = overfitting_history()
    within = history.series("within")
    assert 0 < int(within.argmax()) < 5
    assert within[-1] < 0.5 * within.max()
    assert history[3].cosine.within_se == pytest.approx(0.01)
