"""Boards of all loggers: what reaches them, how often, and what becomes of one that fails."""

import random
from dataclasses import replace

import pytest
import torch

from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor
from lightning_stiffness.callbacks import panels
from lightning_stiffness.callbacks.panels import Panels, PictureSchedule
from lightning_stiffness.history import History
from lightning_stiffness.loggers import Board
from tests.callbacks.modules import QUIET, Classifier, loader, trainer
from tests.toy_history import overfitting_history

pytestmark = QUIET


class Recording(Board):
    """Keeps what it is told, and draws random numbers as some loggers do."""

    shows_pictures = True

    def __init__(self, logger, name):
        super().__init__(logger, name)
        self.told = []

    def begin(self, run):
        random.random()
        self.told.append(("begin", run))

    def reading(self, history, step):
        torch.rand(1)
        self.told.append(("reading", len(history), step))

    def picture(self, tag, figure, step):
        self.told.append(("picture", tag, step))

    def text(self, tag, text, step):
        self.told.append(("text", tag, text))

    def end(self, history):
        self.told.append(("end", len(history)))

    def of(self, kind):
        return [entry[1:] for entry in self.told if entry[0] == kind]


class Failing(Recording):
    def reading(self, history, step):
        raise OSError("the disk is full")


@pytest.fixture
def boards(monkeypatch):
    made = []

    def make(loggers, name):
        made.extend(logger(None, name) for logger in loggers)
        return made[-len(loggers) :] if loggers else []

    monkeypatch.setattr(panels, "boards_of", make)
    monkeypatch.setattr(panels, "DASHBOARD", {"a": lambda history: "figure", "none": lambda history: None})
    return made


def drawn(elapsed_per_reading, cost, readings=1000):
    schedule, at = PictureSchedule(), []
    for count in range(1, readings + 1):
        if schedule.is_due(count, count * elapsed_per_reading):
            schedule.drew(count, cost)
            at.append(count)
    return at


def test_pictures_become_rare():
    assert drawn(1000.0, 1.0)[:6] == [1, 2, 3, 5, 8, 12]
    assert len(drawn(1000.0, 1.0)) < 20


@pytest.mark.parametrize(("per_reading", "cost"), [(0.2, 1.0), (5.0, 0.5), (30.0, 4.0)])
def test_pictures_take_a_small_share_of_the_time(per_reading, cost):
    at = drawn(per_reading, cost)
    assert len(at) > 3
    assert all(cost * (k + 1) <= 0.05 * count * per_reading for k, count in enumerate(at) if k)  # the first is a guess


def test_a_run_of_a_few_seconds_is_drawn_at_its_end_only(boards):
    shown, history = Panels([Recording], "stiffness", is_full=True), overfitting_history(10)
    history = History(history.probe, [replace(one, elapsed=0.5 * k) for k, one in enumerate(history)])
    for count in range(1, len(history) + 1):
        shown.reading(history[:count], count)
    shown.end(history, 11)
    assert [step for _, step in boards[0].of("picture")] == [11]


def test_a_run_is_shown_from_begin_to_end(boards):
    shown = Panels([Recording], "stiffness", is_full=True)
    history = overfitting_history(10)
    for count in range(1, len(history) + 1):
        shown.reading(history[:count], 100 * count)
    shown.end(history, 1100)
    shown.stopped({"stop": True}, "why", 1100)
    (board,) = boards
    assert [count for count, _ in board.of("reading")] == list(range(1, 12))
    assert [step for _, step in board.of("picture")] == [100, 200, 300, 500, 800, 1100]
    assert board.of("end") == [(11,)]
    assert board.of("text") == [("stiffness/decision", "why")]


def test_a_picture_that_cannot_be_drawn_is_left_out_with_a_warning(boards, monkeypatch):
    def fails(history):
        raise ValueError("nothing to draw")

    monkeypatch.setattr(panels, "DASHBOARD", {"bad": fails, "good": lambda history: "figure"})
    shown, history = Panels([Recording], "stiffness", is_full=True), overfitting_history(3)
    with pytest.warns(UserWarning, match="picture 'bad' cannot be drawn .*nothing to draw"):
        shown.reading(history[:1], 1)
    shown.reading(history[:2], 2)
    assert [tag for tag, _ in boards[0].of("picture")] == ["good", "good"]


def test_the_last_picture_is_not_drawn_twice(boards):
    shown = Panels([Recording], "stiffness", is_full=True)
    history = overfitting_history(2)
    for count in range(1, 4):
        shown.reading(history[:count], count)
    shown.end(history, 3)
    assert [step for _, step in boards[0].of("picture")] == [1, 2, 3]


def test_only_words_where_panels_are_not_wanted(boards):
    shown = Panels([Recording], "stiffness", is_full=False)
    history = overfitting_history(2)
    shown.reading(history, 1)
    shown.end(history, 1)
    shown.restored(3.0, "words", 1)
    assert boards[0].told == [("text", "stiffness/restored", "words")]


def test_random_states_are_left_alone(boards):
    shown = Panels([Recording], "stiffness", is_full=True)
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    shown.begin(None)
    shown.reading(overfitting_history(2), 1)
    assert before[0] == random.getstate()
    assert torch.equal(before[1], torch.get_rng_state())


def test_a_logger_that_fails_is_left_out_and_the_others_go_on(boards):
    shown = Panels([Failing, Recording], "stiffness", is_full=True)
    history = overfitting_history(2)
    with pytest.warns(UserWarning, match="NoneType cannot show .*the disk is full.*Training goes on"):
        shown.reading(history, 1)
    shown.reading(history, 2)
    shown.end(history, 2)
    failing, recording = boards
    assert failing.told == []
    assert len(recording.of("reading")) == 2


def test_a_real_run(boards, tmp_path, monkeypatch):
    from lightning.pytorch.loggers import CSVLogger

    made = []
    monkeypatch.setattr(panels, "boards_of", lambda loggers, name: made.append(Recording(loggers, name)) or made[-1:])
    stopper = StiffnessEarlyStopping(criterion=lambda history: _stop_at(history, 3))
    run = trainer([StiffnessMonitor(probe_size=12), stopper], logger=CSVLogger(tmp_path), max_epochs=9)
    run.fit(Classifier(), loader())
    preparing, board = made
    assert preparing.told == []
    card = board.of("begin")[0][0]
    assert card.settings["measured on"] == "12 training samples, 3 classes"
    assert card.settings["readings"] == "every epoch"
    assert "Classifier" in card.settings["model"]
    assert [count for count, _ in board.of("reading")] == [1, 2, 3]
    assert "Training stops after 2 epochs" in dict(board.of("text"))["stiffness/decision"]
    assert board.of("end") == [(3,)]


def _stop_at(history, readings):
    from lightning_stiffness import Decision

    return Decision(len(history) >= readings, "enough", epoch=history[-1].epoch if history else 0.0)
