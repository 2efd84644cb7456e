import pickle
from types import SimpleNamespace

import pytest

from lightning_stiffness import MixedSamplesError, StiffnessError
from lightning_stiffness.callbacks.agreement import agreed, attempted


class AwkwardError(Exception):
    """Cannot be unpickled, as exceptions of other packages."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def two_processes(found_by_the_first):
    """The Trainer of the second of two processes, which gets what the first one sends, pickled."""
    sent = []
    first = SimpleNamespace(world_size=2, strategy=SimpleNamespace(broadcast=lambda value: sent.append(value) or value))
    agreed(first, found_by_the_first)
    return SimpleNamespace(
        world_size=2, strategy=SimpleNamespace(broadcast=lambda _: pickle.loads(pickle.dumps(sent[0])))
    )


def test_what_is_attempted_comes_back_or_why_it_did_not():
    assert attempted(lambda: 3) == 3
    assert isinstance(attempted(lambda: 1 / 0), ZeroDivisionError)
    with pytest.raises(KeyboardInterrupt):
        attempted(lambda: (_ for _ in ()).throw(KeyboardInterrupt()))


def test_a_single_process_agrees_with_itself():
    cause = AwkwardError(1, 2)
    assert agreed(SimpleNamespace(world_size=1), cause) is cause


def test_the_first_process_counts():
    assert agreed(two_processes("first"), ValueError("mine")) == "first"
    assert agreed(two_processes(None), 4) is None


@pytest.mark.parametrize("kind", [StiffnessError, MixedSamplesError])
def test_errors_of_ours_keep_their_kind(kind):
    outcome = agreed(two_processes(kind("why")), "mine")
    assert type(outcome) is kind
    assert str(outcome) == "why"


def test_other_exceptions_are_told_in_words():
    outcome = agreed(two_processes(AwkwardError("this", "that")), "mine")
    assert isinstance(outcome, RuntimeError)
    assert str(outcome) == "AwkwardError: this and that"
