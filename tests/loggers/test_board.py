"""Numbers and words reach each logger in the way it takes them."""

from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_stiffness.loggers import Board, RunCard, boards_of, log_scalars
from lightning_stiffness.loggers.tensorboard import TensorBoardBoard
from tests.loggers.offline import offline_wandb
from tests.toy_balance import toy_readings
from tests.toy_history import toy_history, toy_probe


class Plain:
    """As small as a logger can be."""

    def __init__(self) -> None:
        self.metrics: list[Any] = []
        self.saved = 0

    def log_metrics(self, metrics, step):
        self.metrics.append((metrics, step))

    def save(self):
        self.saved += 1


class WithTables(Plain):
    def __init__(self):
        super().__init__()
        self.texts = []

    def log_text(self, key, columns, data):
        self.texts.append((key, columns, data))


def test_numbers_go_to_every_logger_and_to_its_file():
    loggers = [Plain(), Plain()]
    values = {"a/b": 1.0, "a/c": float("nan")}
    log_scalars(loggers, values, 7)
    assert all(logger.metrics == [(values, 7)] for logger in loggers)
    assert all(logger.saved == 1 for logger in loggers)
    loggers[0].metrics[0][0].clear()
    assert len(values) == 2


def test_numbers_are_in_the_files_at_once(tmp_path):
    table, board = CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")
    log_scalars([table, board, DummyLogger()], {"a/b": 0.25}, 3)
    with open(f"{table.log_dir}/metrics.csv") as file:
        assert file.read().split() == ["a/b,step", "0.25,3"]
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a/b")] == [(3, 0.25)]


def test_text_goes_where_it_can(tmp_path):
    table, board, tables = CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board"), WithTables()
    for shown in boards_of([Plain(), table, DummyLogger(), tables, board], "a"):
        shown.text("a/decision", "why", 5)
    assert tables.texts == [("a/decision", ["step", "text"], [[5, "why"]])]
    board.experiment.flush()
    events = EventAccumulator(board.log_dir)
    events.Reload()
    event = events.Tensors("a/decision/text_summary")[0]
    assert (event.step, event.tensor_proto.string_val[0]) == (5, b"why")


def test_each_logger_has_the_board_of_its_kind_and_those_of_subclasses_too(tmp_path):
    class Own(TensorBoardLogger):
        pass

    boards = boards_of([Plain(), Own(tmp_path), CSVLogger(tmp_path)], "mine")
    assert [type(board) for board in boards] == [Board, TensorBoardBoard, Board]
    assert {board.name for board in boards} == {"mine"}


def test_a_logger_that_can_show_nothing_is_no_trouble():
    logger = Plain()
    (board,) = boards_of([logger], "a")
    history = toy_history([0.5])
    board.begin(RunCard(toy_probe(), {}, {}))
    board.reading(history, 1)
    board.picture("matrix", Figure(), 1)
    board.stopped({}, "why", 1)
    board.end(history)
    assert logger.metrics == []


def test_no_logger_is_no_trouble():
    log_scalars([], {"a": 1.0}, 0)
    assert boards_of([], "a") == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_takes_both_offline(tmp_path):
    pytest.importorskip("wandb")
    with offline_wandb(tmp_path):
        logger = WandbLogger(save_dir=tmp_path, offline=True, project="tests")
        log_scalars([logger], {"stiffness/within": 0.5}, 4)
        (board,) = boards_of([logger], "stiffness")
        board.text("stiffness/decision", "why", 4)
        summary = dict(logger.experiment.summary)
        logger.experiment.finish()
    assert summary["stiffness/within"] == 0.5
    assert summary["trainer/global_step"] == 4
    assert "stiffness/decision" in summary


def test_the_classes_of_a_balancer_go_where_there_are_words():
    logger = WithTables()
    (board,) = boards_of([logger], "balancing")
    board.balance(toy_readings(1), 10)
    ((key, _, ((step, text),)),) = logger.texts
    assert (key, step) == ("balancing/classes", 10)
    assert "| class | samples |" in text
    (bare,) = boards_of([Plain()], "balancing")
    bare.balance(toy_readings(1), 10)
