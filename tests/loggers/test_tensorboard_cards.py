from lightning_stiffness.loggers import RunCard
from lightning_stiffness.loggers.tensorboard_cards import about_card, stopped_card
from tests.toy_history import toy_probe

TEXT = "Training stops after 2.5 epochs, by A. Within fell from 0.9 to 0.8.\nIt has been worse.\nThe loss fell."


def test_a_run_is_told_in_words_and_a_table():
    card = about_card("mine", RunCard(toy_probe(), {"model": "Net | 3", "steps": 7, "rate": 0.00123456}, {}))
    assert "How to read this" in card
    for word in ("Within", "Between", "memorising", "**Custom Scalars**, mine:", "--samples_per_plugin images=200"):
        assert word in card
    rows = ["| setting | value |", "| --- | --- |", "| model | Net \\| 3 |", "| steps | 7 |", "| rate | 0.001235 |"]
    assert card.endswith("\n".join(rows))


def test_a_stop_is_told_with_its_reason_and_what_to_do_next():
    verdict = {"watched": "within", "signal": 0.8, "best": 0.9, "best_step": 40, "error": None, "criterion": "A(b=1)"}
    card = stopped_card(verdict, TEXT)
    assert card.startswith("### Training stops after 2.5 epochs, by A\n\n- Within fell from 0.9 to 0.8.\n- It has been")
    assert card.index("The loss fell.") < card.index("### What to do next") < card.index("### In numbers")
    for row in ("| now | 0.8 |", "| at its best | 0.9 |", "| step of the best weights | 40 |", "| rule | A(b=1) |"):
        assert row in card
    assert "standard error" not in card


def test_a_stop_without_words_is_told_too():
    assert "What to do next" in stopped_card({}, "")
