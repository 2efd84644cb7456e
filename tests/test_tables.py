import math
from dataclasses import replace

import pytest
from rich.console import Console

from lightning_stiffness.history import History
from lightning_stiffness.tables import classes_table, readings_table
from tests.toy_balance import toy_readings
from tests.toy_history import overfitting_history, toy_history


def printed(history, **options):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(readings_table(history, **options))
        return console.export_text()


def test_values_carry_two_standard_errors():
    text = printed(toy_history([0.5, 0.4]))
    assert "0.500 ± 0.020" in text
    assert "0.400 ± 0.020" in text


def test_a_long_run_shows_first_and_last_and_says_what_is_left_out():
    table = readings_table(overfitting_history(40), most_rows=5)
    assert table.row_count == 5
    assert [*table.columns[0].cells] == ["0", "10", "20", "30", "40"]
    assert "36 readings between are not shown." in table.caption


def test_the_verdict_is_below():
    assert "It stops." in printed(toy_history([0.5]), verdict="It stops.")


def test_cost_is_a_share_of_the_time_of_training_where_that_is_known():
    history = toy_history([0.5, 0.4])
    timed = History(history.probe, [replace(one, elapsed=5.0 * (k + 1)) for k, one in enumerate(history)])
    assert [*readings_table(timed).columns[-1].cells] == ["10.0 %", "10.0 %"]
    assert [*readings_table(history).columns[-1].cells] == ["0.50 s", "1.00 s"]


@pytest.mark.parametrize("within", [math.nan, 0.5])
def test_undefined_values(within):
    history = toy_history([0.5])
    cosine = replace(history[0].cosine, within=within, within_se=math.nan)
    text = printed(History(history.probe, [replace(history[0], cosine=cosine)]))
    assert ("0.500 " in text) == (within == 0.5)


def test_a_row_for_each_class_of_a_balancer():
    table = classes_table(toy_readings(3, names=tuple("abcdef")))
    assert [*table.columns[0].cells] == ["f", "e", "d", "c", "b", "a"]
    assert table.title == "Classes, 3 readings of a balancer, the last at epoch 3"
    few = classes_table(toy_readings(1, classes=9, groups=()), most_rows=4)
    assert (few.row_count, few.caption) == (4, "5 larger classes are not shown.")
