import pytest
import torch
from torch import nn

from lightning_stiffness import StiffnessError
from lightning_stiffness.callbacks.balance_validation import ValidationTally
from lightning_stiffness.functional.logit_offsets import probabilities_under_frequencies
from lightning_stiffness.targets import targets_of

EVEN, NATURAL = torch.full((3,), 1 / 3), torch.tensor([0.9, 0.05, 0.05])


def natural(logits):
    return probabilities_under_frequencies(logits, EVEN, NATURAL)


def tally(layer, reports=None):
    return ValidationTally(layer, 3, targets_of, natural, [].append if reports is None else reports.append)


def once(values):
    return values


def passed(found, layer, batches, loader=0):
    for x, y in batches:
        found.expect((x, y), loader)
        layer(x)


@pytest.fixture
def layer():
    return nn.Linear(4, 3).eval()


@pytest.fixture
def batches():
    return [(torch.randn(n, 4), torch.arange(n) % 2) for n in (7, 5)]


def test_recalls_are_those_of_all_batches(layer, batches):
    found = tally(layer)
    found.begin()
    with torch.no_grad():
        passed(found, layer, batches)
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        logits = layer(x)
    seen = found.result(once)
    for label in (0, 1):
        own = logits[y == label]
        assert seen.recall[label] == (own.argmax(1) == label).float().mean()
        assert seen.natural_recall[label] == ((own.softmax(1) * NATURAL).argmax(1) == label).float().mean()
        assert torch.allclose(seen.probabilities[label], own.softmax(1).mean(0))
    assert seen.recall[2].isnan()
    assert seen.probabilities[2].isnan().all()


def test_each_pass_begins_anew(layer, batches):
    found = tally(layer)
    assert found.result(once) is None
    for _ in range(2):
        found.begin()
        passed(found, layer, batches[:1])
        assert found.result(lambda sums: sums)
    found.begin()
    assert found.result(once) is None


def test_processes_are_added_up(layer, batches):
    first, second, whole = (tally(layer) for _ in range(3))
    for one in (first, second, whole):
        one.begin()
    for one, part in ((first, batches[:1]), (second, batches[1:]), (whole, batches)):
        passed(one, layer, part)
    shared = first.result(lambda sums: sums + second._sums)
    expected = whole.result(once)
    for name in ("recall", "natural_recall", "probabilities"):
        assert torch.allclose(getattr(shared, name), getattr(expected, name), equal_nan=True)


def test_what_is_no_validation_is_not_counted(layer, batches):
    found = tally(layer)
    found.begin()
    layer(batches[0][0])  # nothing was announced
    passed(found, layer, batches, loader=1)
    layer.train()
    passed(found, layer, batches)
    layer.eval()
    found.expect(batches[0])
    layer(torch.randn(3, 4))  # other rows
    assert found.result(once) is None
    found.expect(batches[0])
    found.begin()
    layer(batches[0][0])
    assert found.result(once) is None


def test_only_the_first_call_counts(layer, batches):
    found = tally(layer)
    found.begin()
    found.expect(batches[0])
    for _ in range(3):
        layer(batches[0][0])
    assert found._sums[0].sum() == 7


def test_it_survives_what_it_cannot_read(layer):
    reports = []
    found = tally(layer, reports)
    found.begin()
    found.expect(torch.randn(3, 4))
    found.expect((torch.randn(3, 4), torch.tensor([0, 1, 3])))
    assert [type(cause) for cause in reports] == [StiffnessError, StiffnessError]
    assert "found 0 to 3" in str(reports[1])
    assert found.result(once) is None


def test_it_works_in_inference_mode(layer, batches):
    found = tally(layer)
    with torch.inference_mode():
        found.begin()
        passed(found, layer, batches)
        seen = found.result(once)
    assert not seen.recall.is_inference()


def test_it_is_gone_afterwards(layer):
    found = tally(layer)
    found.remove()
    assert not layer._forward_hooks
