import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
FACTS = {"date": "2026-01-01", "processor": "a processor", "cores": 2, "versions": {"torch": "2"}}


@pytest.fixture(autouse=True)
def _path_of_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name):
    return importlib.import_module(name)


def measured(seconds, floor=1.0, **values):
    times = {"seconds": (seconds,) * 3, "processor_seconds": (seconds,) * 3, "first_seconds": seconds}
    beside = {"floor_seconds": (floor,) * 3, "floor_processor_seconds": (floor,) * 3}
    defaults = {"extra_megabytes": 100.0, "first_processor_seconds": seconds}
    return module("cells").Outcome("measured", **times | beside | defaults | values)


def failed(status, reason, **values):
    return module("cells").Outcome(status, reason, **values)


def results_of(outcomes, **facts):
    environment = FACTS | {"peak_gflops": {"1": 50.0, "2": 90.0}} | facts
    cells = {module("cells").Cell(*key): outcome for key, outcome in outcomes.items()}
    return module("gram_results").Results(cells, "wall", environment, {"repeats": 3}, {})


def checks_by_name(outcomes):
    found = module("gram_results").checks(results_of(outcomes))
    return {check.what: check for check in found}


ACCURATE = {"relative_error": 1e-7, "largest_error": 1e-7, "sign_agreement": 1.0}


def group(model="cnn", samples=500, **methods):
    return {(model, "floor", samples): measured(1.0)} | {
        (model, name, samples): outcome for name, outcome in methods.items()
    }


def test_a_target_is_met_missed_or_not_measured():
    def cost(outcome):
        return checks_by_name(group(ours=outcome))["K, CNN, n = 500"]

    assert cost(measured(1.0, **ACCURATE)).verdict == "met"
    assert cost(measured(1.2, **ACCURATE)).verdict == "missed"
    assert cost(measured(1.2, **ACCURATE)).reached == "1.20 x"
    assert cost(measured(0.5, relative_error=0.1)).verdict == "missed"
    broken = cost(failed("raises", "ValueError: no"))
    assert (broken.verdict, broken.remark) == ("not measured", "raises: ValueError: no")


def test_a_peer_with_a_wrong_answer_is_no_rival():
    outcomes = group(
        ours=measured(1.0, **ACCURATE),
        vmap=measured(4.0, **ACCURATE),
        opacus=measured(0.5, extra_megabytes=1.0, relative_error=1.0),
    )
    found = checks_by_name(outcomes)
    assert found["speed, CNN, n = 500"].reached == "4.00 x"
    assert found["speed, CNN, n = 500"].remark == "torch.func vmap(grad)"  # without a bound in the run
    assert found["memory, CNN, n = 500"].remark == "no peer is within twice our time"
    assert "*0.50*" in module("gram_report").markdown(results_of(outcomes))


def test_a_call_that_was_left_out_counts_with_its_least_time():
    outcomes = group(
        samples=2000,
        ours=measured(1.0, **ACCURATE),
        vmap=failed("skipped", "too long", expected_seconds=3.5, floor_seconds=(1.0,)),
        opacus=measured(9.0, **ACCURATE),
    )
    found = checks_by_name(outcomes)["speed, CNN, n = 2000"]
    assert (found.reached, found.verdict) == ("3.50 x", "met")
    assert "least time" in found.remark
    assert "> 3.50" in module("gram_report").markdown(results_of(outcomes))
    outcomes["cnn", "vmap", 2000] = failed("skipped", "too long", expected_seconds=2.0, floor_seconds=(1.0,))
    assert checks_by_name(outcomes)["speed, CNN, n = 2000"].verdict == "not measured"


def test_memory_is_compared_with_the_leanest_peer_within_twice_our_time():
    outcomes = group(
        ours=measured(1.0, extra_megabytes=120.0, **ACCURATE),
        vmap=measured(1.9, extra_megabytes=110.0, **ACCURATE),
        vmap50=measured(1.5, extra_megabytes=300.0, **ACCURATE),
        loop=measured(2.1, extra_megabytes=10.0, **ACCURATE),
    )
    found = checks_by_name(outcomes)["memory, CNN, n = 500"]
    assert (found.target, found.reached, found.verdict) == ("<= 110 MB", "120 MB", "missed")


def test_class_cosine_is_held_to_its_cost_and_to_memory_that_does_not_grow():
    sizes = {500: (1.1, 400.0), 2000: (1.3, 500.0), 10_000: (1.2, 900.0)}
    outcomes = {}
    for n, (seconds, memory) in sizes.items():
        outcomes["mlp", "floor", n] = measured(1.0)
        outcomes["mlp", "class_cosine", n] = measured(seconds, extra_megabytes=memory, **ACCURATE)
    found = checks_by_name(outcomes)
    verdicts = [found[f"class cosine, MLP, n = {n}"].verdict for n in sizes]
    assert verdicts == ["met", "missed", "met"]
    assert found["class cosine's memory, MLP, n = 10000"].verdict == "missed"


def test_two_threads_must_be_faster_than_one():
    outcomes = group(ours=measured(1.0, **ACCURATE))
    outcomes["cnn", "floor", 500, 2] = measured(0.6)
    outcomes["cnn", "ours", 500, 2] = measured(1.1, **ACCURATE)
    found = checks_by_name(outcomes)["2 threads, K, CNN, n = 500"]
    assert (found.reached, found.verdict) == ("0.91 x", "missed")
    assert "2 against 1" in module("gram_report").markdown(results_of(outcomes))


def test_the_bound_adds_products_at_the_measured_peak():
    outcomes = group(ours=measured(1.5, **ACCURATE), bound=measured(0.6, product_flops=10e9))
    found = module("gram_results").bound_of(results_of(outcomes), "cnn", 500)
    assert found.total == pytest.approx(0.6 + 10 / 50)
    text = module("gram_report").markdown(results_of(outcomes))
    assert "| CNN | 0.60 | 0.20 | 0.80 | 1.50 | 1.88 |" in text
    assert "Why rows are missed" in text
    outcomes |= group(ours=measured(1.5, **ACCURATE), vmap=measured(2.4, **ACCURATE))
    found = checks_by_name(outcomes)
    assert found["K, CNN, n = 500"].remark == "fastest calls: 1.50 x; bound: 0.80 x"
    assert found["speed, CNN, n = 500"].remark == "torch.func vmap(grad); at the bound: 3.00 x"


def test_report_shows_missed_targets_and_failures_and_writes_all_files(tmp_path):
    outcomes = group(
        ours=measured(2.0, **ACCURATE),
        vmap=measured(3.0, relative_error=math.nan, largest_error=math.nan),
        backpack=failed("raises", "NotImplementedError: no"),
        torchjd=failed("timeout", "longer than 120 s"),
    )
    text = module("gram_report").write(results_of(outcomes), tmp_path)
    assert "**missed**" in text
    assert "BackPACK, CNN, n = 500: raises: NotImplementedError: no" in text
    assert "TorchJD autogram, CNN, n = 500: timeout: longer than 120 s" in text
    contents = json.loads((tmp_path / "gram_speed.json").read_text())
    assert {row["status"] for row in contents["cells"]} == {"measured", "raises", "timeout"}
    assert [row for row in contents["targets"] if row["verdict"] == "missed"]
    assert (tmp_path / "gram_speed.png").read_bytes().startswith(b"\x89PNG")


def test_every_method_that_answers_has_a_mark_of_its_own():
    marks, methods = module("gram_report").MARKS, module("peers").METHODS
    assert set(marks) == {name for name, method in methods.items() if method.kind != "yardstick"}
    assert len({mark.colour for mark in marks.values()}) == len({mark.shape for mark in marks.values()}) == len(marks)


@pytest.mark.slow
def test_scale_report_recovers_slopes_and_names_what_ended_a_series(tmp_path):
    cells, report = module("cells"), module("gram_scale_report")
    outcomes = {}
    for n in (64, 128, 256, 512):
        outcomes[cells.Cell("mlp", "ours", n)] = measured(1e-5 * n**2, extra_megabytes=1.0 * n)
        is_out = n > 128
        vmap = failed("out of memory", "no") if is_out else measured(n / 64, extra_megabytes=50.0 * n)
        outcomes[cells.Cell("mlp", "vmap", n)] = vmap
        outcomes[cells.Cell("mlp", "within", n)] = failed("raises", "NotImplementedError: within")
    large = {cells.Cell("resnet18", "ours", 1000): measured(100.0, extra_megabytes=1900.0, largest_error=1e-6)}
    settings = {"width_samples": 128, "peer_memory": 4.0, "large_budget": 2.0}
    fixtures = {"mlp": {"parameters": 669_706}, "resnet18": {"parameters": 11_173_962}}
    facts = FACTS | {"peak_gflops": {"1": 50.0}}
    text = report.write(report.ScaleResults(outcomes, large, facts, settings, fixtures), tmp_path)
    assert "| MLP | lightning-stiffness | n | 512 | n^2.00 | n^1.00 |  |" in text
    assert "| MLP | torch.func vmap(grad) | n | 128 | n^1.00 | n^1.00 | out of memory |" in text
    assert "| ResNet-18 | 11.2M | 1000 | 44.7 | 100 | 1,900 | 1e-06 |" in text
    assert "NotImplementedError: within" in text
    assert (tmp_path / "gram_scale.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_cell_is_found_again_unless_it_was_measured_otherwise(tmp_path):
    cells = module("cells")
    cell, outcome = cells.Cell("mlp", "ours", 16), measured(1.0, **ACCURATE)
    cells.Store(tmp_path, lambda _: "a").keep(cell, outcome)
    assert cells.Store(tmp_path, lambda _: "a").find(cell) == outcome
    assert cells.Store(tmp_path, lambda _: "b").find(cell) is None
    fresh = cells.Store(tmp_path, lambda _: "a", fresh=True)
    assert fresh.find(cell) is None
    fresh.keep(cell, outcome)
    assert fresh.find(cell) == outcome


def test_hopeless_calls_are_left_out_and_failures_are_not_repeated():
    cells, planning, patience = module("cells"), module("planning"), module("sessions").Patience(longest=60.0)
    known = {
        cells.Cell("cnn", "vmap", 500): measured(10.0),
        cells.Cell("cnn", "backpack", 500): failed("raises", "no"),
        cells.Cell("cnn", "ours", 500): measured(10.0),
    }
    forecast = planning.Forecast(known.get, {"cnn": 0.01})
    left_out = forecast.settled(cells.Cell("cnn", "vmap", 2000), patience)
    assert (left_out.status, left_out.expected_seconds) == ("skipped", 40.0)
    assert forecast.settled(cells.Cell("cnn", "backpack", 2000), patience).reason == "as with n = 500: no"
    assert forecast.settled(cells.Cell("cnn", "ours", 2000), patience) is None
    assert forecast.seconds(cells.Cell("cnn", "floor", 2000)) == 20.0


def test_our_own_cells_are_repeated_even_where_a_call_takes_long():
    cells, patience = module("cells"), module("sessions").Patience(repeats=5, cell_seconds=8.0)
    wanted = {method: patience.wanted(cells.Cell("cnn", method, 500), 9.0) for method in ("ours", "vmap")}
    assert wanted == {"ours": 2, "vmap": 0}
    assert patience.wanted(cells.Cell("cnn", "ours", 500), 20.0) == 1  # without what the first call plans and checks
    assert patience.wanted(cells.Cell("cnn", "vmap", 500), 0.01) == 5


def test_every_turn_takes_every_method_once_in_another_order():
    rotated, names = module("sessions").rotated, list("abcde")
    turns = [rotated(names, turn) for turn in range(4)]
    assert all(sorted(turn) == names for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 4


def test_the_samples_of_the_reference_are_spread_over_the_batch():
    cell, samples = module("gram_cell"), module("samples")
    probe = samples.Samples(torch.arange(50), torch.arange(50))
    batch = cell.arranged(probe, 50, 8)
    places = cell.reference_places(50, 8)
    assert batch.inputs[places].tolist() == list(range(8))
    assert sorted(batch.inputs.tolist()) == list(range(50))
    assert (places[0], places[-1]) == (0, 49)


def test_accuracy_sees_one_wrong_entry_and_one_wrong_sign():
    cell = module("gram_cell")
    gradients = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 1.0]], dtype=torch.float64)
    gram = gradients @ gradients.T
    exact = cell.accuracy(gram, cell.gram_reference(gram))
    assert (exact.relative_error, exact.largest_error, exact.sign_agreement, exact.ties) == (0, 0, 1, 0)
    wrong = gram.clone()
    wrong[0, 1] = -wrong[0, 1]
    found = cell.accuracy(wrong, cell.gram_reference(gram))
    assert found.largest_error == pytest.approx(1.2)
    assert found.sign_agreement == pytest.approx(5 / 6)


def test_on_cuda_a_call_waits_for_the_device_and_memory_is_that_of_the_device(monkeypatch):
    meter, told = module("gram_cell").Meter(torch.device("cuda")), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: told.append("synchronise"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: told.append("forget"))
    call = meter.call(lambda: told.append("work"))
    assert told == ["synchronise", "work", "synchronise"]
    assert call.seconds > 0
    meter.forget_peak()
    assert (told[-1], meter.peak_memory()) == ("forget", 123)


def test_floor_takes_large_batches_in_equal_parts():
    peers, samples = module("peers"), module("samples")
    batch = samples.Samples(torch.zeros(1200, 1), torch.zeros(1200, dtype=torch.long))
    parts = peers.Task(torch.nn.Linear(1, 10), batch).parts
    assert [len(inputs) for inputs, _ in parts] == [400, 400, 400]


def test_product_flops_of_large_batches_follow_from_small_ones(monkeypatch):
    peers, samples = module("peers"), module("samples")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 10))
    batch = samples.Samples(torch.randn(24, 1, 4, 4), torch.arange(24) % 10)
    task = peers.Task(network, batch)
    expected = peers.our_engine(task).explain(task.batch).flops
    monkeypatch.setattr(peers, "WHOLE", 8)
    assert peers.product_flops(task) == pytest.approx(expected)


def measure(script, output, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), "--models", "mlp", "--output", str(output), *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}  # the package may be tested where it is not installed
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
    return done, json.loads((output / f"{script.removesuffix('.py')}.json").read_text())


@pytest.mark.slow  # every cell is a process that imports torch
def test_quick_run_measures_exact_matrices_writes_all_results_and_is_not_done_twice(tmp_path):
    arguments = ["gram_speed.py", tmp_path, "--quick", "--methods", "bound", "ours", "class_cosine"]
    done, results = measure(*arguments)
    cells = {cell["method"]: cell for cell in results["cells"]}
    assert list(cells) == ["floor", "bound", "ours", "class_cosine"]
    for cell in cells.values():
        assert cell["status"] == "measured", cell["reason"]
        assert min(cell["seconds"]) > 0
        assert cell["extra_megabytes"] >= 0
    for method in ("ours", "class_cosine"):
        assert cells[method]["largest_error"] < 1e-5  # single precision against the reference in double precision
        assert cells[method]["sign_agreement"] == 1.0
    assert cells["floor"]["ratio_to_floor"] == 1.0
    assert cells["bound"]["product_flops"] > 0
    assert results["fixtures"]["mlp"]["smallest_loss"] > 1e-3
    table = (tmp_path / "gram_speed.md").read_text()
    assert table in done.stdout
    assert "| lightning-stiffness |" in table
    again, repeated = measure(*arguments)
    assert "4 of them finished before" in again.stderr
    assert repeated["cells"] == results["cells"]


def test_a_call_over_the_time_limit_is_given_up(tmp_path, monkeypatch):
    cells, sessions = module("cells"), module("sessions")
    silent = tmp_path / "silent.py"
    silent.write_text('import sys\nprint(\'{"kind": "ready"}\', flush=True)\nsys.stdin.read()')
    monkeypatch.setattr(sessions, "CELL", silent)
    session = sessions.Session(cells.CellOrder(cells.Cell("mlp", "floor", 8), "none"))
    session.wait(3600)
    assert session.outcome is None
    session.ask("call", 0.01)
    assert (session.outcome.status, session.outcome.reason) == ("timeout", "longer than 0.01 s")
    session.close()


@pytest.mark.slow
def test_scale_measures_against_n_and_keeps_to_the_peers_limit(tmp_path):
    limits = ["--peer-memory", "0.01", "--repeats", "1"]
    _, results = measure("gram_scale.py", tmp_path, "--parts", "n", "--largest", "64", *limits)
    status = {cell["method"]: cell["status"] for cell in results["cells"]}
    assert status == {"floor": "measured", "ours": "measured", "class_cosine": "measured", "vmap": "out of memory"}
