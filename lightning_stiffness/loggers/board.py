"""What a logger can show beside numbers; one that can show nothing else has this board itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.balance_words import class_words
from lightning_stiffness.history import History, ProbeSummary


@dataclass(frozen=True)
class RunCard:
    """What is known of a run when it begins.

    Attributes:
        probe: What is measured.
        settings: How it is measured and trained, in plain words, numbers and lists.
        hyperparameters: Those that the user's module has registered; empty if none.
    """

    probe: ProbeSummary
    settings: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]


class Board:
    """Shows a run in one logger. Numbers are logged before, by `log_scalars`; all this is called on the first process.

    Nothing here may change a global random state, or what the logger shows of the user's own metrics. Whatever is
    raised is reported once by the caller, who then does without this board.

    Args:
        logger: Of Lightning.
        name: First part of all names that are logged.
    """

    shows_pictures = False

    def __init__(self, logger: Any, name: str) -> None:
        """Nothing is written yet."""
        self.logger, self.name = logger, name

    def prepare(self, hyperparameters: Mapping[str, Any], names: Sequence[str]) -> None:
        """Before Lightning logs hyperparameters, in `setup`: what a table of runs should show beside them.

        Args:
            hyperparameters: All that Lightning will log, of the module and of the data module.
            names: First parts of what the monitors of this run log.
        """

    def begin(self, run: RunCard) -> None:
        """Before the first reading: the layout, the settings."""

    def reading(self, history: History, step: int) -> None:
        """What the last reading of a history has beside numbers: histograms, bands, tables, values of classes."""

    def picture(self, tag: str, figure: Figure, step: int) -> None:
        """A picture; it is drawn at some of the readings, more of the early ones, and at the end."""

    def balance(self, readings: Sequence[BalanceReading], step: int) -> None:
        """What a balancer has measured of each class, after training: as a table where there is such, else in words."""
        self.text(f"{self.name}/classes", class_words(readings), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Some lines for people, under a name: as a card where there is such, else as a table, else nowhere."""
        add_card = getattr(getattr(self.logger, "experiment", None), "add_text", None)
        if callable(add_card):
            add_card(tag, text, step)
        elif callable(getattr(self.logger, "log_text", None)):
            self.logger.log_text(tag, columns=["step", "text"], data=[[step, text]])

    def stopped(self, verdict: Mapping[str, Any], text: str, step: int) -> None:
        """That training is stopped: the verdict as data (`Decision.as_dict` with the reason), and in three lines."""
        self.text(f"{self.name}/decision", text, step)

    def restored(self, epoch: float, text: str, step: int) -> None:
        """That the run ends with the weights of an earlier epoch."""
        self.text(f"{self.name}/restored", text, step)

    def end(self, history: History) -> None:
        """After training: what a summary of the run should say."""
