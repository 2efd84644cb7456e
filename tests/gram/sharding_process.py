"""One process of `test_sharding`: shares a module's parameters out, measures it, and trains it on."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.explicit import gradient_columns
from lightning_stiffness.gram.sharding import held, is_sharded, whole, whole_tensor
from tests.gram.wrapped_process import CLASSES, batch, network
from tests.oracle import cross_entropy, loop_gram


class Tied(nn.Module):
    """Layers that share a weight, a frozen one, batch norm, and rows that no number of processes divides evenly."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 7)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.norm, self.head = nn.BatchNorm1d(7), nn.Linear(7, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(self.norm(self.frozen(x)))


def sharded(model: nn.Module, parts=(), shape=(), **options) -> nn.Module:
    """By FSDP2, parts of it apart from the rest; a shape of two is that of replicas, each of which is shared out."""
    from torch.distributed.fsdp import fully_shard

    shape = shape or (dist.get_world_size(),)
    mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    for part in (*parts, model):
        fully_shard(part, mesh=mesh, **options)
    return model


def tied() -> nn.Module:
    """The same in every process, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied().eval()


def assert_measured(model: nn.Module, plain: nn.Module) -> None:
    """Everything that an engine computes is that of a plain module, which a loop measures."""
    with whole(model):
        plain.load_state_dict(model.state_dict())
    expected, _ = loop_gram(plain, cross_entropy, batch())
    engine = GramEngine(model, cross_entropy)
    gram = engine.gram(batch())
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    assert set(gram.routes) == {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert torch.equal(gram.matrix, GramEngine(plain, cross_entropy).gram(batch()).matrix)
    assert torch.equal(gram.matrix, engine.gram(batch()).matrix)
    few = batch(4)
    assert torch.allclose(
        engine.cross_gram(few, batch()).matrix, GramEngine(plain, cross_entropy).cross_gram(few, batch()).matrix
    )
    columns = torch.cat(list(gradient_columns(model, cross_entropy, batch(), gram.losses)), 1)
    assert (columns @ columns.T - expected).norm() <= 1e-5 * expected.norm()


def measured() -> None:
    """Shared out as one, or layer by layer, and left whole between forward and backward."""
    assert_measured(sharded(network()), network())
    model = network()
    assert_measured(sharded(model, [model[0], model[2]]), network())
    model = network()
    assert_measured(sharded(model, [model[0]], reshard_after_forward=False), network())
    model = tied()
    assert_measured(sharded(model, [model.head]), tied())
    for shape in ((dist.get_world_size(), 1), (1, dist.get_world_size())):
        assert_measured(sharded(network(), shape=shape), network())


def neutral() -> None:
    """Training goes on bit for bit as if nothing had been measured, also while gradients accumulate."""
    models = [tied(), tied()]
    for model in models:
        sharded(model, [model.head])
        step(model)
    hooks = [dict(part._forward_pre_hooks) for part in models[0].modules()]
    names = [name for name, _ in models[0].named_parameters()]
    parameters, gradients = list(models[0].parameters()), [copied(p.grad) for p in models[0].parameters()]
    GramEngine(models[0], cross_entropy).gram(batch())
    assert all(a is b for a, b in zip(models[0].parameters(), parameters, strict=True))
    assert [name for name, _ in models[0].named_parameters()] == names
    assert [list(part._forward_pre_hooks.items()) for part in models[0].modules()] == [list(h.items()) for h in hooks]
    assert all(same(p.grad, g) for p, g in zip(models[0].parameters(), gradients, strict=True))
    for last in (False, True):
        for model in models:
            model.set_requires_gradient_sync(last)
            model.set_reshard_after_backward(last)
            backward(model)
        if not last:
            GramEngine(models[0], cross_entropy).gram(batch())
    for model in models:
        descend(model)
        step(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert same(one, other)
        assert same(one.grad, other.grad)


def copied(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Of a frozen parameter there is no gradient."""
    return None if tensor is None else tensor.clone()


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Bit for bit, on this process."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.to_local(), other.to_local())


def backward(model: nn.Module) -> None:
    """Adds gradients of samples which differ from process to process."""
    x, y = batch()
    cross_entropy(model, (x + dist.get_rank(), y)).mean().backward()


def descend(model: nn.Module) -> None:
    """A step of gradient descent."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)


def step(model: nn.Module) -> None:
    """Both."""
    backward(model)
    descend(model)


def mixed_precision() -> None:
    """Weights are measured in their own precision, whatever they are gathered in for training."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model = network()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    sharded(model, [model[0]], mp_policy=policy, reshard_after_forward=False)
    step(model)
    with torch.no_grad():
        model(batch()[0])  # parts are left gathered now, in half precision
    assert_measured(model, network())
    step(model)


def both_ways() -> None:
    """What optimizers hold is found from what is measured, and tensors go there and back."""
    model = sharded(network())
    parameters = list(model.parameters())
    assert is_sharded(model)
    with whole(model):
        assert not is_sharded(model)
        copies = list(model.parameters())
        assert all(held(copy) is parameter for copy, parameter in zip(copies, parameters, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(copies, network().parameters(), strict=True))
        with whole(model):  # a second time changes nothing
            assert all(a is b for a, b in zip(model.parameters(), copies, strict=True))
    assert is_sharded(model)
    assert all(held(parameter) is parameter for parameter in parameters)
    assert torch.equal(whole_tensor(parameters[0]), network()[0].weight)


def put_back_after_an_error() -> None:
    """Also where the model fails, or its loss does."""
    model = sharded(network())
    parameters = list(model.parameters())
    with pytest.raises(ValueError, match="mine"), whole(model):
        raise ValueError("mine")
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    step(model)


def tensor_parallel() -> None:
    """Refused, with FSDP2 around it or without."""
    from torch.distributed.tensor import distribute_module
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    refused(distribute_module(network(), mesh))
    model = network()
    parallelize_module(model, mesh, {"0": ColwiseParallel(output_layouts=None)})
    refused(model)
    model = network()
    parallelize_module(model, mesh, {"0": ColwiseParallel()})
    sharded(model, ignored_params=set(model[0].parameters()))
    refused(model)


def first_generation() -> None:
    """FSDP1 is refused, seen from outside and from inside of its wrapper."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True)
    refused(wrapped)
    refused(wrapped.module)
    wrapped = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    refused(wrapped)
    refused(wrapped.module)


def methods() -> None:
    """Those that are registered as another forward are measured, too; copies that nobody measured are no result."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def logits(self, x):
            return self.net(x)

    model = Other()
    sharded(model, [model.net[0]])
    register_fsdp_forward_method(model, "logits")
    wrapped = vars(model)["logits"]

    def losses(module, batch):
        return nn.functional.cross_entropy(module.logits(batch[0]), batch[1], reduction="none")

    def gathering(module, batch):
        model.net[0].unshard()
        return losses(module, batch)

    expected, _ = loop_gram(network(), cross_entropy, batch())
    assert (GramEngine(model, losses).gram(batch()).matrix - expected).norm() <= 1e-5 * expected.norm()
    losses(model, batch()).mean().backward()
    assert vars(model)["logits"] == wrapped
    with pytest.raises(StiffnessError, match="must stay whole"):
        GramEngine(model, gathering).gram(batch())
    losses(model, batch()).mean().backward()


def advice() -> None:
    """What the refusal says."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    plain = network()
    plain.load_state_dict(get_model_state_dict(sharded(network()), options=StateDictOptions(full_state_dict=True)))
    expected, _ = loop_gram(network(), cross_entropy, batch())
    assert (GramEngine(plain, cross_entropy).gram(batch()).matrix - expected).norm() <= 1e-5 * expected.norm()


def refused(model: nn.Module) -> None:
    """A clear error, not a Gram matrix of zeros."""
    with pytest.raises(StiffnessError, match=r"fully_shard.*found .*ModelParallelStrategy"):
        GramEngine(model, cross_entropy).gram(batch())


CASES = {
    case.__name__: case
    for case in (
        *(measured, neutral, mixed_precision, both_ways, put_back_after_an_error, methods),
        *(tensor_parallel, first_generation, advice),
    )
}


def main() -> None:
    """All cases, each in all processes."""
    dist.init_process_group("gloo")
    for name, case in CASES.items():
        case()
        dist.barrier()
        print(name, "right", flush=True)
    dist.destroy_process_group()
