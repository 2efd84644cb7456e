import re

from lightning_stiffness.loggers import RunCard
from lightning_stiffness.loggers.tensorboard_layout import charts
from tests.toy_history import Toy, toy_probe

TAGS = [
    *(f"stiffness/{name}" for name in ("within", "within_se", "within_sign", "within_sign_se", "between", "loss")),
    *("stiffness/between_se", "stiffness/between_sign", "stiffness/between_sign_se", "stiffness/seconds"),
    *("stiffness/train_within", "stiffness/leave_one_out_loss", "stiffness/leave_one_out_error"),
    *("stiffness_class/cat", "stiffness_class/a/b", "stiffness_band/within_low", "stiffness_val/within"),
    *("train_loss", "train_loss_step", "train_loss_epoch", "val_loss", "loss/val", "valLoss", "val_acc", "epoch"),
]


def matched(chart):
    """The tags that TensorBoard puts into a chart, which takes regular expressions as joined groups."""
    pattern = re.compile("|".join(f"({tag})" for tag in chart[1]))
    return [tag for tag in TAGS if pattern.match(tag)]


def card(mode="train", classes=3):
    probe = toy_probe(Toy(classes, 2))
    return RunCard(type(probe)(mode, classes, probe.strata, 1.0), {}, {})


def test_the_charts_and_what_is_in_them():
    shown = charts("stiffness/", card(), ["leave_one_out_loss"], most_classes=25)
    assert [title for title, (kind, _) in shown.items() if kind == "Margin"] == [
        "within classes, with 2 standard errors",
        "between classes, with 2 standard errors",
    ]
    assert shown["between classes, with 2 standard errors"][1] == [
        *("stiffness/between", "stiffness_band/between_low", "stiffness_band/between_high"),
    ]
    assert {title: matched(chart) for title, chart in shown.items() if chart[0] == "Multiline"} == {
        "within and between": ["stiffness/within", "stiffness/between"],
        "sign of the products, within and between": ["stiffness/within_sign", "stiffness/between_sign"],
        "loss beside within": [
            *("stiffness/within", "stiffness/loss"),
            *("train_loss", "train_loss_epoch", "val_loss", "loss/val", "valLoss"),
        ],
        "leave-one-out: loss and error as if unseen": [
            *("stiffness/leave_one_out_loss", "stiffness/leave_one_out_error"),
        ],
        "within each class": ["stiffness_class/cat", "stiffness_class/a/b"],
        "cost: seconds of each reading": ["stiffness/seconds"],
    }


def test_only_charts_that_have_something_to_show():
    plain = charts("stiffness/", card(classes=26), [], most_classes=25)
    assert not any("class" in title and "each" in title for title in plain)
    assert not any(title.startswith(("leave-one-out", "training samples")) for title in plain)
    (cross,) = set(charts("stiffness/", card("cross", 26), [], most_classes=25)) - set(plain)
    assert matched(charts("stiffness/", card("cross"), [], 25)[cross]) == ["stiffness/within", "stiffness/train_within"]


def test_names_are_taken_by_the_letter():
    shown = charts("a.b (c)/", card(), [], most_classes=25)
    assert shown["within classes, with 2 standard errors"][1][0] == "a.b (c)/within"
    (pattern,) = shown["within and between"][1]
    assert re.match(pattern, "a.b (c)/within")
    assert not re.match(pattern, "aXb (c)/within")
