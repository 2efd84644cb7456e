"""MLflow: pictures, tables and texts as artifacts of the run, the verdict as tags."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.figure import Figure
from typing_extensions import override

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.history import History
from lightning_stiffness.loggers.board import Board, RunCard
from lightning_stiffness.loggers.class_tables import Rows, balance_rows, finite, group_rows, matrix_rows

LONGEST_TAG: Final = 500  # characters; older servers refuse more
TAGS: Final = {"epoch": "stopped_epoch", "reason": "stop_reason", "criterion": "criterion", "best_step": "best_step"}


class MLFlowBoard(Board):
    """Shows a run in MLflow. Settings are an artifact, since parameters could not change when a run is resumed."""

    shows_pictures = True

    @override
    def begin(self, run: RunCard) -> None:
        probe = {"mode": run.probe.mode, "classes": run.probe.num_classes, "samples": len(run.probe.strata)}
        self._write_json({**run.settings, "probe": probe}, "settings")

    @override
    def picture(self, tag: str, figure: Figure, step: int) -> None:
        place = f"{self.name}/{tag}/step_{step:08d}.png"
        self.logger.experiment.log_figure(self.logger.run_id, figure, place)

    @override
    def text(self, tag: str, text: str, step: int) -> None:
        self.logger.experiment.log_text(self.logger.run_id, text, f"{tag}.txt")

    @override
    def stopped(self, verdict: Mapping[str, Any], text: str, step: int) -> None:
        self.text(f"{self.name}/decision", text, step)
        self._write_json(dict(verdict), "decision")
        self._tag({tag: verdict.get(key) for key, tag in TAGS.items()})

    @override
    def balance(self, readings: Sequence[BalanceReading], step: int) -> None:
        super().balance(readings, step)
        self._write_table(balance_rows(readings), "classes")

    @override
    def end(self, history: History) -> None:
        self._write_table(matrix_rows(history), "class_matrix")
        self._write_table(group_rows(history), "class_groups")
        within = history[-1].cosine.within
        self._tag({"readings": len(history), "last_within": finite(round(within, 4))})

    def _tag(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if value is not None:
                self.logger.experiment.set_tag(self.logger.run_id, f"{self.name}/{key}", str(value)[:LONGEST_TAG])

    def _write_table(self, table: Rows, name: str) -> None:
        """In the layout of MLflow's own tables, which its pages show as such."""
        self._write_json({"columns": list(table.columns), "data": table.rows}, name)

    def _write_json(self, value: Any, name: str) -> None:
        text = json.dumps(value, indent=1, default=str)
        self.logger.experiment.log_text(self.logger.run_id, text, f"{self.name}/{name}.json")
