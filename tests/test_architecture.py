"""The house stays as it is drawn: imports point down, tests mirror the package, files and functions stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_stiffness"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# Their tests are those of the file that uses them.
TESTED_ELSEWHERE = {
    "cli/__main__": "cli/test_main",
    "reading": "test_history",
    "errors": "raised and matched throughout",
    "gram/check": "gram/test_check",
    "gram/modes": "gram/test_plain",
    "gram/trainable": "gram/test_wrapped",
    "callbacks/reader": "callbacks/test_monitor",
    "callbacks/arguments": "callbacks/test_monitor",
    "callbacks/probe_pair": "callbacks/test_probing",
    "callbacks/publishing": "callbacks/signals/test_board, callbacks/test_monitor_logging",
    "callbacks/signals/signal": "callbacks/signals/test_leave_one_out",
    "gram/explicit": "callbacks/signals/test_gradients",
    "callbacks/run_folder": "callbacks/test_monitor",
    "callbacks/namespace": "callbacks/test_namespaces",
    **{
        f"gram/{name}": "gram/test_engine: every specimen of the zoo, by every route"
        for name in (
            *("graph", "convolution", "embedding", "products", "joining", "collect", "positions"),
            *("plan", "measurement", "class_sums", "fallback", "results", "losses", "scale"),
            *("batched", "operands", "owned", "recurrent"),
            *(f"rules/{kind}" for kind in ("registry", "convolutions", "linear_maps", "norms", "pointwise", "tables")),
        )
    },
}


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def code_lines(function):
    """Lines with code: without docstring, comments and blank lines."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return len({line for statement in body for node in ast.walk(statement) for line in _span(node)})


def _span(node):
    return [node.lineno] if hasattr(node, "lineno") else []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 350
    for function in functions(path):
        assert code_lines(function) <= 40, function.name


def test_the_median_function_is_short():
    lengths = sorted(code_lines(function) for path in FILES for function in functions(path))
    assert lengths[len(lengths) // 2] <= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tests_mirror_the_package(path):
    relative = path.relative_to(PACKAGE)
    name = str(relative.with_suffix(""))
    if relative.name == "__init__.py" or name in TESTED_ELSEWHERE:
        return
    assert (ROOT / "tests" / relative.parent / f"test_{relative.name}").exists()


def test_imports_point_down():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_project_names_no_machine():
    inside = [path for part in ROOT.iterdir() if part.is_dir() and part.name[0] != "." for path in part.rglob("*")]
    own = {".py", ".md", ".toml", ".txt", ".cff", ".yaml"}
    for path in (path for path in [*ROOT.iterdir(), *inside] if path.suffix in own):
        text = path.read_text(errors="ignore")
        for word in ("/" + "work/", "/" + "root/", "/" + "tmp/"):
            assert word not in text, f"{path}: {word}"
