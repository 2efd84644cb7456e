import io

from rich.console import Console

from lightning_stiffness.diagnosis import Diagnosis, Share

SHARES = (
    Share("fallback: no rule for CdistBackward0; torch.func.vmap", tuple("abcdef"), 20),
    Share("product of two Gram matrices", ("weight",), 80),
)


def printed(found):
    console = Console(file=io.StringIO(), width=120)
    console.print(found)
    return console.file.getvalue()


def test_shares_and_the_line_to_paste():
    found = Diagnosis("Net", 100, shares=SHARES, settings={"num_classes": 3, "every_n_epochs": 2})
    assert found.fallback_share == 0.2
    assert found.monitor == "StiffnessMonitor(num_classes=3, every_n_epochs=2)"


def test_what_is_printed():
    numbers = {"samples": 200, "seconds": 1.5, "floor_seconds": 0.5, "megabytes": 1234.4, "epoch_share": 0.25}
    found = Diagnosis(
        "Net", 100, losses="loss=", targets="targets=", counts=(90, 110), shares=SHARES, notes=("one", "two"),
        settings={"num_classes": 2}, **numbers,
    )  # fmt: skip
    text = printed(found)
    for words in (
        "20.0%  fallback: no rule for CdistBackward0; torch.func.vmap: a, b, c, d and 2 more",
        "80.0%  product of two Gram matrices",
        "1.5 s and 1,234 MB for a reading of 200 samples, 3.0 times their forward and backward pass (500.0 ms)",
        "about 25% of what an epoch takes",
        "targets=: 2 classes with 90 to 110 samples each, of 200",
        "notes       one",
        "StiffnessMonitor(num_classes=2)",
    ):
        assert words in text


def test_a_problem_takes_the_place_of_numbers():
    text = printed(Diagnosis("Net", 100, problem="it compares [n] samples", mixes=True, notes=("unseen",)))
    assert "it compares [n] samples" in text
    assert "mix" in text
    assert "unseen" not in text
    assert "StiffnessMonitor" not in text
