"""Objects of the user's code by name, `package.module:name` or `script.py:name`, for the command line."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.sequential_data import is_data
from lightning_stiffness.structure import is_container

Result = TypeVar("Result")
_PACKAGE = Path(__file__).parent


def made(name: str, what: str) -> Any:
    """The object of this name; a class or function is called without arguments.

    Args:
        name: `package.module:name`, where the working directory counts, or `script.py:name`. The name may have dots.
        what: What it is for, for messages.

    Raises:
        StiffnessError: There is nothing of this name, or the user's code fails; the message has the cause.

    >>> made("math:pi", "BATCH")
    3.141592653589793
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise StiffnessError(
            f"{what} must be package.module:name or script.py:name; found {name!r}. For example train.py:make_model."
        )
    found = _attribute(_imported(place, what), attribute, what)
    if inspect.isclass(found) or inspect.isroutine(found):
        return run_user_code(found, f"{name}()")
    return found


def load_module(name: str) -> nn.Module:
    """The model of this name.

    Raises:
        StiffnessError: As `made`, or it is no module.
    """
    found = made(name, "MODULE")
    if not isinstance(found, nn.Module):
        raise StiffnessError(
            f"MODULE must be a LightningModule, or what makes one without arguments; {name} is {type(found).__name__}."
        )
    return found


def load_data(name: str) -> Any:
    """The batch or data of this name.

    Raises:
        StiffnessError: As `made`, or it is neither.
    """
    found = made(name, "BATCH")
    if not (is_data(found) or isinstance(found, Tensor) or is_container(found)):
        raise StiffnessError(
            "BATCH must be a batch, a DataLoader, a Dataset or a LightningDataModule, or what makes one without "
            f"arguments; {name} is {type(found).__name__}."
        )
    return found


def with_checkpoint(module: nn.Module, path: Path) -> None:
    """Loads the weights of a checkpoint of Lightning, or of a saved state dict.

    Raises:
        StiffnessError: The file is missing, no checkpoint, or of another model.
    """
    if not path.is_file():
        raise StiffnessError(f"The checkpoint must be a file; there is no {path}.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(saved.get("state_dict", saved))
    except Exception as cause:
        raise StiffnessError(
            f"{path} must be a checkpoint of {type(module).__name__}; {_first_line(cause)}. Load it in your own code "
            "otherwise, and name the function that returns the loaded model."
        ) from cause


def _imported(place: str, what: str) -> ModuleType:
    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return run_user_code(lambda: importlib.import_module(place), f"import of {place}")
    path = Path(place)
    if not path.is_file():
        raise StiffnessError(f"{what} must name a script that exists; there is no {place}.")
    key = f"_script_{path.stem}"
    known = sys.modules.get(key)
    if known is not None and known.__file__ == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(key, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[key] = script
    sys.path.insert(0, str(path.resolve().parent))
    run_user_code(lambda: spec.loader.exec_module(script), place)  # type: ignore[union-attr]  # asserted above
    return script


def _attribute(module: ModuleType, attribute: str, what: str) -> Any:
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        names = [
            name for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__
            and not inspect.ismodule(value)
        ]  # fmt: skip
        close = difflib.get_close_matches(attribute, names, n=3) or names[:6]
        where = Path(module.__file__ or module.__name__).name
        raise StiffnessError(
            f"{what} must name something in {where}; there is no {attribute!r} (but {', '.join(close) or 'nothing'})."
        ) from None


def run_user_code(work: Callable[[], Result], name: str) -> Result:
    """Runs the user's code; what goes wrong there is told in one line.

    Args:
        work: The code.
        name: What it is, the first words of the message.

    Raises:
        StiffnessError: Anything went wrong; the original is its cause.
    """
    try:
        return work()
    except StiffnessError:
        raise
    except ModuleNotFoundError as cause:
        raise StiffnessError(f"{name} failed: {cause}. Is it installed, and are you in the right folder?") from cause
    except (Exception, SystemExit) as cause:
        raise StiffnessError(f"{name} failed with {_first_line(cause)}{_place(cause)}.") from cause


def _place(cause: BaseException) -> str:
    """The last line of the user's own code on the way to where it went wrong; empty where there is none."""
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.line and _is_own(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def _is_own(file: str) -> bool:
    path = Path(file)
    return _PACKAGE not in path.parents and not {"site-packages", "dist-packages"} & set(path.parts)


def _first_line(cause: BaseException) -> str:
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0].rstrip('.')}" if text else type(cause).__name__
