"""Random states that a measurement must leave as they were: the global ones, and generators that a dataset holds."""

import contextlib
import functools
import inspect
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from lightning_stiffness.errors import StiffnessError

Generator: TypeAlias = (
    np.random.Generator | np.random.RandomState | np.random.BitGenerator | random.Random | torch.Generator
)

GENERATORS: Final = (
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    random.Random,
    torch.Generator,
)
_WITHOUT_PARTS: Final = (str, bytes, int, float, complex, type, ModuleType, np.ndarray, torch.Tensor, type(None))
LOOKED_AT: Final = 20_000  # objects: generators lie near the dataset itself
LONGEST: Final = 1000  # parts of a collection that is looked into: longer ones hold samples


@contextlib.contextmanager
def isolated_randomness(seed: int, *holders: object) -> Iterator[None]:
    """Global random states seeded inside and put back afterwards: Python, NumPy, torch, and CUDA where it is in use.

    Args:
        seed: 0 to 2^32 - 1.
        holders: Objects such as datasets, whose own generators are put back too, but not seeded.

    Raises:
        StiffnessError: If the seed is outside of its range.

    >>> before = torch.get_rng_state()
    >>> with isolated_randomness(0):
    ...     torch.rand(1)
    tensor([0.4963])
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    if not 0 <= seed < 2**32:
        raise StiffnessError(f"seed must lie between 0 and 2^32 - 1; found {seed}. Pass such an integer.")
    undo = [_restorer(generator) for holder in holders for generator in generators_within(holder)]
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    in_use = torch.cuda.is_initialized()
    cuda_states = torch.cuda.get_rng_state_all() if in_use else []
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - transforms draw from the global state
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed a CUDA not yet initialised
        if cuda_states:
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        for put_back in undo:
            put_back()
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def generators_within(holder: object) -> list[Generator]:
    """The random generators that an object holds, or that the code of its class names as global variables.

    Attributes, collections, bound methods, closures and arguments of partial functions are followed; collections of
    more than 1,000 parts, arrays and tensors are not looked into, nor more than 20,000 objects in all.

    Source: ours.

    >>> from torch.utils.data import Subset
    >>> class Noisy(torch.utils.data.Dataset):
    ...     def __init__(self):
    ...         self.random = np.random.default_rng(0)
    >>> data = Noisy()
    >>> generators_within(Subset(data, [0, 1])) == [data.random]
    True
    """
    found: list[Generator] = []
    kept: dict[int, object] = {}  # by identity; what is kept here keeps its identity
    queue = deque([holder])
    while queue and len(kept) < LOOKED_AT:
        one = queue.popleft()
        if isinstance(one, _WITHOUT_PARTS) or id(one) in kept:
            continue
        kept[id(one)] = one
        if isinstance(one, GENERATORS):
            found.append(one)
        else:
            with contextlib.suppress(Exception):  # an object that cannot be looked into
                queue.extend(_parts(one))
    return found


def _parts(one: object) -> Iterator[object]:
    if isinstance(one, Mapping | Sequence | set | frozenset):
        if len(one) <= LONGEST and isinstance(one, dict | list | tuple | set | frozenset | deque):
            yield from one.values() if isinstance(one, dict) else one
    elif isinstance(one, functools.partial):
        yield from (one.func, *one.args, *one.keywords.values())
    elif isinstance(one, MethodType):
        yield from (one.__self__, one.__func__)
    if isinstance(one, FunctionType):
        yield from _named_by(one)
        yield from (cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell))
        yield from one.__defaults__ or ()
        yield from (one.__kwdefaults__ or {}).values()
    else:
        yield from getattr(one, "__dict__", {}).values()
        yield from (getattr(one, name, None) for kind in type(one).__mro__ for name in _slots(kind))
        yield from _named_by_class(type(one))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__"))


@functools.lru_cache(maxsize=1024)
def _functions_of(kind: type) -> tuple[FunctionType, ...]:
    functions = (inspect.unwrap(value) for one in kind.__mro__ for value in vars(one).values() if callable(value))
    return tuple(function for function in functions if isinstance(function, FunctionType))


def _named_by_class(kind: type) -> Iterator[object]:
    """Generators that are class variables, or global variables which a method names."""
    yield from (value for one in kind.__mro__ for value in vars(one).values() if isinstance(value, GENERATORS))
    for function in _functions_of(kind):
        yield from _named_by(function)


def _named_by(function: FunctionType) -> Iterator[object]:
    values = (function.__globals__.get(name) for name in function.__code__.co_names)
    yield from (value for value in values if isinstance(value, GENERATORS))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises where there is nothing
    except ValueError:
        return False
    return True


def _restorer(generator: Generator) -> Callable[[], object]:
    """Remembers the state of a generator; what it returns puts it back."""
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    if isinstance(generator, np.random.BitGenerator):
        return functools.partial(setattr, generator, "state", generator.state)
    if isinstance(generator, np.random.RandomState):
        return functools.partial(generator.set_state, generator.get_state(legacy=False))
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    put_back: Callable[..., object] = generator.set_state
    return functools.partial(put_back, generator.get_state())
