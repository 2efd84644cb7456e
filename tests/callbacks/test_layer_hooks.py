import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from lightning_stiffness.callbacks.layer_hooks import LayerHook, forget_compiled_code


def doubled():
    layer = nn.Linear(2, 2)
    plain = copy.deepcopy(layer)
    handles = (
        layer.register_forward_pre_hook(
            LayerHook(layer, lambda layer, inputs, named: ((2 * inputs[0],), named)), with_kwargs=True
        ),
        layer.register_forward_hook(LayerHook(layer, lambda layer, inputs, output: output + 1)),
    )
    return layer, plain, handles


def test_copies_are_plain_and_can_be_saved():
    layer, plain, handles = doubled()
    x = torch.randn(3, 2)
    assert torch.allclose(layer(x), plain(2 * x) + 1)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert torch.equal(other(x), plain(x))
        assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(other)))(x), plain(x))
    for handle in handles:
        handle.remove()
    assert torch.equal(layer(x), plain(x))


def test_a_copy_is_read_without_this_package():
    layer, _, _ = doubled()
    assert b"stiffness" not in pickle.dumps(layer)


@pytest.mark.slow
def test_compiled_code_sees_hooks_that_come_and_go():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    compiled = torch.compile(net, backend="eager")
    x = torch.randn(3, 2)
    plain = compiled(x)
    handle = net[0].register_forward_hook(LayerHook(net[0], lambda layer, inputs, output: output + 1))
    forget_compiled_code()
    assert torch.allclose(compiled(x), (net[0](x)).tanh())
    assert not torch.allclose(compiled(x), plain)
    handle.remove()
    forget_compiled_code()
    assert torch.allclose(compiled(x), plain)


def test_where_the_compiler_is_not_loaded_it_stays_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.convert_frame", raising=False)
    monkeypatch.setattr(torch.compiler, "reset", lambda: pytest.fail("reset"))
    forget_compiled_code()
    assert "torch._dynamo.convert_frame" not in sys.modules


def test_nothing_is_forgotten_where_nothing_was_compiled(monkeypatch):
    forget_compiled_code()
    monkeypatch.setattr(torch.compiler, "reset", lambda: pytest.fail("reset"))
    forget_compiled_code()
