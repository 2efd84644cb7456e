"""Runs made of numbers, with all that a page can show."""

import io
import math
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from lightning_stiffness.functional.detail import Detail
from lightning_stiffness.functional.distance import DistanceCurve
from lightning_stiffness.history import History, ProbeSummary
from lightning_stiffness.run_files import RunFiles
from tests.toy_balance import toy_readings
from tests.toy_history import Toy, complete_history, overfitting_history, toy_history

FOUR = Toy(num_classes=4)
EVIL = ('<script>alert("x")</script>', "a \"quoted\" & 'odd' name", "long " * 30 + "name", "x.y[0]")
DECISION = {
    "stop": True, "stopped": True, "epoch": 9.0, "restored_epoch": 4.0, "restored_step": 40, "best": 0.5,
    "watched": "within-class stiffness", "reason": "it fell", "explanation": "Training stops after 9 epochs.\nIt fell",
}  # fmt: skip
SHADOW = {
    "best": {"val_loss": 0.2},
    "criteria": [
        {
            "name": "Mine<b>", "epoch": 7.0, "step": 70, "reason": "since <b>", "restored_epoch": 5.0,
            "at_stop": {"val_loss": 0.4}, "at_restored": {"val_loss": 0.25},
        },
        {"name": "Never", "epoch": None, "step": None, "reason": "no", "restored_epoch": None},
    ],
}  # fmt: skip


def detailed(history, odd=(1,), crossing=1.0):
    """The same readings with details; `odd` samples have little in common with their class."""
    samples = len(history.probe.strata)
    readings = [replace(r, elapsed=10.0 * (r.epoch + 1), detail=_detail(r, samples, odd, crossing)) for r in history]
    return History(replace(history.probe, ids=tuple(range(100, 100 + samples))), readings)


def _detail(reading, samples, odd, crossing):
    own = torch.full((samples,), reading.cosine.within) + 0.001 * torch.arange(samples)
    own[list(odd)] = -0.3
    middles = torch.linspace(-0.975, 0.975, 40)
    edges = torch.linspace(0.1, 0.9, 13)
    return Detail(
        own=own,
        rival=torch.full((samples,), 0.1),
        rival_class=torch.zeros(samples, dtype=torch.long),
        opposed_class=torch.full((samples,), 2),
        within_counts=(100 * torch.exp(-(((middles - reading.cosine.within) / 0.2) ** 2))).round(),
        between_counts=(300 * torch.exp(-((middles / 0.1) ** 2))).round(),
        distance=DistanceCurve(edges, 0.5 * (1 - edges[:-1] / crossing), torch.ones(12), -0.5 / crossing, 0.5),
    )


def complete_run(epochs=9, toy=FOUR, name="version_0", decision=None, shadow=None, pictures=True):
    """A run with every kind of number."""
    history = detailed(complete_history(epochs, toy))
    thumbnails = tuple(png(index) for index in range(len(history.probe.ids))) if pictures else ()
    settings = {"model": "Net<b>, 12 parameters", "processes": 1, "planned": "9 epochs"}
    balance = toy_readings(2, classes=toy.num_classes, groups=((0, 1),), names=toy.class_names)
    return RunFiles(Path("logs", name, "stiffness.jsonl"), history, settings, thumbnails, decision, shadow, balance)


def plain_run(history, name="plain"):
    return RunFiles(Path("logs", name, "stiffness.jsonl"), history)


def batch_run(epochs=5):
    """A run that was read from its training batches: no replicates, no details, and a class without pairs."""
    toy = Toy(num_classes=3, missing=(2,))
    readings = [
        replace(r, cosine=_bare(r.cosine), sign=_bare(r.sign), loss_se=math.nan)
        for r in overfitting_history(epochs, toy)
    ]
    return plain_run(History(ProbeSummary("batch", 3, (), math.nan), readings), "batches")


def _bare(stiffness):
    return replace(stiffness, within_replicates=torch.zeros(0), between_replicates=torch.zeros(0))


def undefined_run():
    """A run in which nothing could be measured."""
    nothing = [
        replace(r, cosine=_undefined(r.cosine), sign=_undefined(r.sign), loss=math.nan)
        for r in toy_history([0.5, 0.4, 0.3])
    ]
    return plain_run(History(toy_history([]).probe, nothing), "undefined")


def _undefined(stiffness):
    nan = math.nan
    return replace(stiffness, matrix=stiffness.matrix * nan, within=nan, within_se=nan, between=nan, between_se=nan)


def png(shade):
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "png")
    return file.getvalue()
