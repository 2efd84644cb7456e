import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gram_speed.py"

pytestmark = pytest.mark.slow  # every cell is a process that imports torch


def measure(output, *arguments):
    command = [sys.executable, str(SCRIPT), "--models", "mlp", "--output", str(output), *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}  # the package may be tested where it is not installed
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((output / "results.json").read_text())


def test_quick_run_measures_exact_matrices_and_writes_all_results(tmp_path):
    printed, results = measure(tmp_path, "--quick", "--methods", "ours", "vmap", "loop")
    cells = {cell["method"]: cell for cell in results["cells"]}
    assert list(cells) == ["floor", "ours", "vmap", "loop"]
    for cell in cells.values():
        assert cell["status"] == "measured", cell["reason"]
        assert min(cell["seconds"]) > 0
        assert cell["extra_megabytes"] >= 0
    for method in ("ours", "vmap", "loop"):
        assert cells[method]["relative_error"] < 1e-5  # single precision against the reference in double precision
        assert cells[method]["sign_agreement"] == 1.0
    assert cells["floor"]["ratio_to_floor"] == 1.0
    assert results["fixtures"]["mlp"]["smallest_loss"] > 1e-3
    table = (tmp_path / "results.md").read_text()
    assert table in printed
    assert "| lightning-stiffness |" in table
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_over_the_time_limit_is_a_row_that_says_so(tmp_path):
    printed, results = measure(tmp_path, "--quick", "--methods", "floor", "--timeout", "0.01")
    assert [cell["status"] for cell in results["cells"]] == ["timeout"]
    assert results["cells"][0]["ratio_to_floor"] is None
    assert "longer than 0.01 s" in printed
