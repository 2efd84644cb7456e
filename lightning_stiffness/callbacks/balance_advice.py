"""Why a balancer could not measure, without advice to pass what only a StiffnessMonitor takes."""

import re
from typing import Final

_ONLY_A_MONITORS: Final = (
    r", or pass probe= as [^.]*(?=\.)",
    r" ?Pass probe= as [^.]*\.",
    r" \(pass probe=\)",
    r", or give the callback `loss=[^`]*`",
)


def for_a_balancer(message: str) -> str:
    """The message of an error, without arguments that a balancer does not have.

    >>> for_a_balancer("Found 2 loaders. Pass probe= as a DataLoader or as a batch.")
    'Found 2 loaders.'
    """
    for advice in _ONLY_A_MONITORS:
        message = re.sub(advice, "", message)
    return message
