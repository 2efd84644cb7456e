"""A rule for stopping whose verdict is known beforehand."""

from lightning_stiffness import Decision, History


def at_fourth_reading(history: History) -> Decision:
    """Stops at the fourth reading and holds the second for the best."""
    best = history[1].step if len(history) > 1 else None
    return Decision(len(history) > 3, "enough is enough", best_step=best, epoch=history[-1].epoch)
