"""Random small networks: a description that prints and shrinks, and the module that is built from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

Forward = Callable[[Tensor], Tensor]
Maker = Callable[["Network", Tensor, "Step"], Forward]

VECTOR, SEQUENCE, IMAGE, TOKENS = "vector", "sequence", "image", "tokens"
MAKERS: dict[str, Maker] = {}
NEXT: dict[str, list[tuple[str, str]]] = {VECTOR: [], SEQUENCE: [], IMAGE: [], TOKENS: []}
"""For each kind of value the steps that take it, and the kind that they return."""
ACTIVATIONS: tuple[Forward, ...] = (torch.tanh, F.gelu, torch.sigmoid, F.silu, F.elu, F.softplus, torch.sin, F.relu)
SAMPLES = (1, 2, 3, 4, 5, 6, 7, 11)
VOCABULARY = 7


@dataclass(frozen=True)
class Step:
    """One operation: its name, and numbers that it reads its settings from."""

    name: str
    a: int = 0
    b: int = 0
    c: int = 0


@dataclass(frozen=True)
class Description:
    """All that a network and its batch are built from; `repr` reproduces them."""

    kind: str
    steps: tuple[Step, ...]
    samples: int = 5
    classes: int = 3
    width: int = 3
    length: int = 3
    loss: int = 0
    frozen: int = 0
    double: bool = True
    seed: int = 0

    def build(self, double: bool = False) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """The module and its batch, the same ones each time; with ``double``, their values in float64 in any case."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            inputs = self._inputs()
            targets = torch.randint(0, self.classes, (self.samples,))
            network = Network(self, inputs)
            if self.frozen:  # some parameters, but never all
                for parameter in list(network.parameters())[: -1 : self.frozen]:
                    parameter.requires_grad_(False)
        if not self.double:
            inputs = inputs.float() if inputs.is_floating_point() else inputs
            network.float()
        if double:
            inputs = inputs.double() if inputs.is_floating_point() else inputs
            network.double()
        return network, (inputs, targets)

    def _inputs(self) -> Tensor:
        n, d, t = self.samples, self.width, self.length
        if self.kind == TOKENS:
            return torch.randint(0, VOCABULARY, (n, t))
        shape = {VECTOR: (n, d), SEQUENCE: (n, t, d), IMAGE: (n, d, t + 2, t + 1)}[self.kind]
        return torch.randn(shape, dtype=torch.double)

    def loss_of(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One loss per sample."""
        logits, (_, y) = module(batch[0]), batch
        if self.loss == 1:
            return F.cross_entropy(logits, y, reduction="none", label_smoothing=0.1)
        one_hot = F.one_hot(y, self.classes).to(logits)
        if self.loss == 2:
            return F.mse_loss(logits, one_hot, reduction="none").mean(1)
        if self.loss == 3:
            return F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1)
        return F.cross_entropy(logits, y, reduction="none")


class Held:
    """A parameter as its module holds it at the moment, which `torch.func.functional_call` may have replaced."""

    def __init__(self, owner: nn.ParameterList, place: int) -> None:
        self.owner = owner
        self.place = place

    def __getattr__(self, name: str) -> Any:
        return getattr(self.owner[self.place], name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        def opened(value: Any) -> Any:
            return value.owner[value.place] if isinstance(value, cls) else value

        return function(*tree_map(opened, arguments), **tree_map(opened, settings or {}))


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: getattr(self.owner[self.place], name)(*arguments)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "matmul", "rmatmul", "truediv", "getitem"):
    setattr(Held, f"__{_name}__", _operator(f"__{_name}__"))


class Network(nn.Module):
    """Runs its steps one after another; each was made for the shape it meets."""

    def __init__(self, description: Description, inputs: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.raw = nn.ParameterList()
        self.made: list[tuple[torch.Size, Forward]] = []
        self.table: nn.Embedding | None = None
        value = inputs
        forwards: list[Forward] = []
        for step in description.steps:
            forward = MAKERS[step.name](self, value, step)
            if value.is_floating_point():
                self.made.append((value.shape, forward))
            with torch.no_grad():
                value = forward(value)
            forwards.append(forward)
        forwards.append(self._head(value, description))
        self.forwards = forwards

    def forward(self, x: Tensor) -> Tensor:
        for forward in self.forwards:
            x = forward(x)
        return x

    def __deepcopy__(self, memo: dict[int, object]) -> "Network":
        raise NotImplementedError("its functions are closures over this very object: build the description again")

    def add(self, part: nn.Module) -> nn.Module:
        """Registers a module; its parameters are noise, so that none has a special value."""
        part = part.double()
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.copy_(
                    torch.randn_like(parameter) * (0.5 if parameter.ndim > 1 else 0.4) + (parameter.ndim < 2)
                )
            for name, buffer in part.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_()
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 2)
        self.parts.append(part.eval())
        return part

    def parameter(self, *shape: int, scale: float = 0.6) -> Any:
        """Registers a parameter, and returns what can be used as one."""
        self.raw.append(nn.Parameter(torch.randn(shape, dtype=torch.double) * scale))
        return Held(self.raw, len(self.raw) - 1)

    def _head(self, value: Tensor, description: Description) -> Forward:
        if value.ndim > 2:
            value = value.flatten(1)
        width, classes = value.shape[1], description.classes
        table = self.table
        if table is not None and table.embedding_dim == width and table.num_embeddings >= classes:
            return lambda x: F.linear(x.flatten(1), table.weight)[:, :classes]
        head = self.add(nn.Linear(width, classes))
        return lambda x: head(torch.tanh(x.flatten(1)))


def step(takes: str | tuple[str, ...], returns: str | None = None) -> Callable[[Maker], Maker]:
    """Registers a step for some kinds of values; without ``returns`` the kind stays as it is."""

    def register(maker: Maker) -> Maker:
        MAKERS[maker.__name__] = maker
        for kind in (takes,) if isinstance(takes, str) else takes:
            NEXT[kind].append((maker.__name__, returns or kind))
        return maker

    return register


FEATURES = (VECTOR, SEQUENCE)  # the features are the last axis
DENSE = (VECTOR, SEQUENCE, IMAGE)


@step(DENSE)
def activation(net, x, s):
    return ACTIVATIONS[s.a % len(ACTIVATIONS)]


@step(FEATURES)
def linear(net, x, s):
    return net.add(nn.Linear(x.shape[-1], 1 + s.a % 5, bias=s.b % 3 > 0))


@step(FEATURES)
def matrix_product(net, x, s):
    weight, bias = net.parameter(x.shape[-1], 1 + s.a % 4), net.parameter(1 + s.a % 4)
    return [lambda x: x @ weight, lambda x: x @ weight + bias, lambda x: bias - x @ weight][s.b % 3]


@step(FEATURES)
def residual(net, x, s):
    inner = net.add(nn.Linear(x.shape[-1], x.shape[-1]))
    return lambda x: x + torch.tanh(inner(x))


@step(FEATURES)
def concatenation(net, x, s):
    inner = net.add(nn.Linear(x.shape[-1], 1 + s.a % 3))
    return lambda x: torch.cat([inner(x), x], -1)


@step(FEATURES)
def gate(net, x, s):
    inner = net.add(nn.Linear(x.shape[-1], 2 * (1 + s.a % 3)))
    if s.b % 2:
        return lambda x: F.glu(inner(x), -1)

    def forward(x):
        first, second = inner(x).chunk(2, -1)
        return first * torch.sigmoid(second)

    return forward


@step(FEATURES)
def unequal_split(net, x, s):
    inner, other = net.add(nn.Linear(x.shape[-1], 3)), net.parameter(1)

    def forward(x):
        first, second = inner(x).split([1, 2], -1)
        return second * first + other

    return forward


@step(FEATURES)
def split_parameter(net, x, s):
    weight = net.parameter(3 * 2, x.shape[-1])
    parts = (lambda: weight.chunk(3)) if s.a % 2 else (lambda: weight.view(3, 2, -1).unbind(0))

    def forward(x):
        q, k, v = (F.linear(x, part) for part in parts())
        return q * torch.tanh(k) + v

    return forward


@step(FEATURES)
def overlapping_slices(net, x, s):
    d = x.shape[-1]
    weight = net.parameter(d + 2, 3)
    if s.a % 2:
        return lambda x: torch.tanh(x @ weight[:d]) + x @ weight[2:]
    return lambda x: torch.tanh(x @ weight[:d]) * weight[1] + weight[0, :1]


@step(FEATURES)
def tied_transpose(net, x, s):
    weight = net.parameter(1 + s.a % 4, x.shape[-1])
    return lambda x: torch.tanh(F.linear(x, weight)) @ weight


@step(FEATURES)
def low_rank(net, x, s):
    d = x.shape[-1]
    up, down, frozen = net.parameter(2, d), net.parameter(d, 2), torch.randn(d, d)
    if s.a % 3 == 0:
        return lambda x: x + x @ down @ up
    if s.a % 3 == 1:
        return lambda x: x @ (frozen.to(x) + down @ up)
    return lambda x: F.linear(x, frozen.to(x) + (down @ up).t())


@step(FEATURES)
def weight_normalised(net, x, s):
    linear = nn.Linear(x.shape[-1], 1 + s.a % 4)
    return net.add(nn.utils.parametrizations.weight_norm(linear, dim=s.b % 2))


@step(FEATURES)
def layer_norm(net, x, s):
    axes = x.shape[-2:] if x.ndim > 2 and s.a % 2 else x.shape[-1:]
    return net.add(nn.LayerNorm(axes, bias=s.b % 2 > 0))


@step(FEATURES)
def rms_norm(net, x, s):
    return net.add(nn.RMSNorm(x.shape[-1], eps=1e-3))


@step(FEATURES)
def rms_norm_by_hand(net, x, s):
    weight = net.parameter(x.shape[-1])
    return lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-2) * (1 + weight)


@step(DENSE)
def broadcast(net, x, s):
    """A parameter of any shape that x can be broadcast with."""
    shape = [size if (s.a >> k) & 1 else 1 for k, size in enumerate(x.shape[1:])]
    shape = [1, *shape][s.b % (len(shape) + 2) :]
    p = net.parameter(*shape)
    operations = [
        *(lambda x: x + p, lambda x: x * p, lambda x: x - p, lambda x: p - x, lambda x: x / (2 + p.square())),
        *(lambda x: torch.addcmul(p, x, p), lambda x: torch.add(x, p, alpha=0.5), lambda x: torch.addcmul(x, x, p)),
        *(lambda x: x * p.exp(), lambda x: torch.lerp(x, p.expand_as(x), 0.3), lambda x: x + p.expand(x.shape)),
        *(lambda x: torch.where(x > 0, x, x * p), lambda x: torch.sigmoid(p) * x + (1 - torch.sigmoid(p)) * x.sin()),
    ]
    return operations[s.c % len(operations)]


@step(DENSE)
def temperature(net, x, s):
    p = net.parameter()
    operations = [lambda x: x * p, lambda x: x / p.exp(), lambda x: x * F.softplus(p), lambda x: x * p.clamp(-1, 1)]
    return operations[s.a % len(operations)]


@step(VECTOR)
def einsum_of_vectors(net, x, s):
    d = x.shape[-1]
    first, second = net.parameter(d, 2, 3), net.parameter(3, 2)
    operations = [
        lambda x: torch.einsum("bd,dek->be", x, first),
        lambda x: torch.einsum("bd,dek,ke->bk", x, first, second),
        lambda x: torch.einsum("bd,dek->bek", x, first).flatten(1),
        lambda x: torch.einsum("dek,bd->kb", first, x).t(),
        lambda x: torch.einsum("bd,dek,be->bk", x, first, torch.tanh(x @ first[:, :, 0])),
    ]
    return operations[s.a % len(operations)]


@step(SEQUENCE)
def einsum_of_sequences(net, x, s):
    t, d = x.shape[1:]
    mix, heads, other = net.parameter(t, 2), net.parameter(2, d, 2), net.parameter(t, d)
    operations = [
        lambda x: torch.einsum("btd,ts->bsd", x, mix),
        lambda x: torch.einsum("btd,hde->bthe", x, heads).flatten(2),
        lambda x: torch.einsum("btd,hde->bhte", x, heads).transpose(1, 2).flatten(2),
        lambda x: torch.einsum("btd,td->btd", x, other),
        lambda x: torch.einsum("btd,ts,hde->bshe", x, mix, heads).flatten(2),
        lambda x: torch.einsum("tbd,hde->bthe", x.transpose(0, 1), heads).flatten(2),
    ]
    return operations[s.a % len(operations)]


@step(FEATURES)
def batched_product(net, x, s):
    d = x.shape[-1]
    weight = net.parameter(d, 3)

    def in_batches(x):
        return x.reshape(len(x), -1, d), weight.expand(len(x), d, 3)

    operations = [
        lambda x: (x.unsqueeze(-2) @ weight).squeeze(-2),
        lambda x: torch.matmul(weight.t(), x.unsqueeze(-1)).squeeze(-1),
        lambda x: torch.bmm(*in_batches(x)).reshape(*x.shape[:-1], 3),
        lambda x: torch.baddbmm(in_batches(x)[0][..., :1], *in_batches(x)).reshape(*x.shape[:-1], 3),
    ]
    return operations[s.a % len(operations)]


@step(FEATURES)
def bilinear(net, x, s):
    part = net.add(nn.Bilinear(x.shape[-1], x.shape[-1], 2))
    return lambda x: part(x, torch.tanh(x))


@step(FEATURES)
def cosine_layer(net, x, s):
    weight, scale = net.parameter(3, x.shape[-1]), net.parameter(1)
    return lambda x: F.linear(F.normalize(x, dim=-1, eps=0.1), F.normalize(weight, dim=-1, eps=0.1)) * scale


@step(DENSE)
def slope(net, x, s):
    channels = x.shape[1] if s.a % 2 else 1
    return net.add(nn.PReLU(channels))


@step(DENSE)
def again(net, x, s):
    """An earlier step once more, with the same parameters, where the shapes allow it."""
    fitting = [forward for shape, forward in net.made if shape == x.shape]
    if not fitting:
        return lambda x: x
    chosen = fitting[s.a % len(fitting)]
    with torch.no_grad():
        if chosen(x).ndim != x.ndim:
            return lambda x: x
    return chosen


@step(FEATURES)
def rows_at_once(net, x, s):
    inner, shift = net.add(nn.Linear(x.shape[-1], 3)), net.parameter(3)
    return lambda x: (inner(x.reshape(-1, x.shape[-1])) * shift).reshape(*x.shape[:-1], 3)


@step(FEATURES)
def several_experts(net, x, s):
    gate_, experts = net.add(nn.Linear(x.shape[-1], 2)), net.parameter(2, x.shape[-1], 3)
    return lambda x: torch.einsum("...d,kde,...k->...e", x, experts, gate_(x).softmax(-1))


@step(VECTOR)
def batch_norm_of_vectors(net, x, s):
    return net.add(nn.BatchNorm1d(x.shape[1]))


@step(VECTOR)
def recurrent_cell(net, x, s):
    kind = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)[s.a % 3]
    cell = net.add(kind(x.shape[1], 3, bias=s.b % 2 > 0))

    def forward(x):
        state = cell(x)
        for _ in range(s.c % 3):
            state = cell(x, state)
        return state[0] if isinstance(state, tuple) else state

    return forward


@step(VECTOR, SEQUENCE)
def as_sequence(net, x, s):
    inner = net.add(nn.Linear(x.shape[1], 6))
    return lambda x: inner(x).view(len(x), 3, 2) if s.a % 2 else inner(x).view(len(x), 2, 3)


@step(VECTOR, IMAGE)
def as_image(net, x, s):
    inner = net.add(nn.Linear(x.shape[1], 18))
    return lambda x: inner(x).view(len(x), 2, 3, 3)


@step(SEQUENCE)
def attention(net, x, s):
    d = x.shape[-1]
    part = net.add(
        nn.MultiheadAttention(d, 1 + (d % 2 == 0), bias=s.a % 2 > 0, batch_first=s.b % 2 > 0, add_bias_kv=s.c % 3 == 1)
    )

    def forward(x):
        y = x if s.b % 2 else x.transpose(0, 1)
        y = part(
            y,
            y[:, :1] if s.b % 2 and s.c % 4 == 2 else y,
            y[:, :1] if s.b % 2 and s.c % 4 == 2 else y,
            need_weights=s.c % 2 > 0,
        )[0]
        return y if s.b % 2 else y.transpose(0, 1)

    return forward


@step(SEQUENCE)
def attention_by_hand(net, x, s):
    d = x.shape[-1]
    inner, table = net.add(nn.Linear(d, 3 * d)), net.parameter(2 * x.shape[1], 1, scale=2.0)
    places = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1]) + x.shape[1]

    def forward(x):
        q, k, v = inner(x).chunk(3, -1)
        bias = table[places].permute(2, 0, 1)
        if s.a % 2:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias if s.b % 2 else None)
        return ((q @ k.transpose(1, 2) + bias).softmax(-1) @ v) if s.b % 2 else (q @ k.mT).softmax(-1) @ v

    return forward


@step(SEQUENCE)
def encoder_layer(net, x, s):
    d = x.shape[-1]
    layer = nn.TransformerEncoderLayer(
        d, 1, 3, dropout=0.0, batch_first=s.a % 2 > 0, norm_first=s.b % 2 > 0, activation=F.gelu
    )
    part = net.add(layer)
    if s.c % 2:
        part.train()
    return part if s.a % 2 else lambda x: part(x.transpose(0, 1)).transpose(0, 1)


@step(SEQUENCE)
def recurrent(net, x, s):
    kind = (nn.RNN, nn.GRU, nn.LSTM)[s.a % 3]
    part = net.add(
        kind(
            x.shape[-1], 2, num_layers=1 + s.b % 2, bidirectional=s.c % 2 > 0, batch_first=s.c % 3 > 0, bias=s.b % 3 > 0
        )
    )
    return lambda x: part(x)[0] if s.c % 3 else part(x.transpose(0, 1))[0].transpose(0, 1)


@step(SEQUENCE)
def time_first(net, x, s):
    inner, norm, shift = net.add(nn.Linear(x.shape[-1], 3)), net.add(nn.LayerNorm(3)), net.parameter(3)
    return lambda x: (norm(inner(x.transpose(0, 1))) * shift).transpose(0, 1)


@step(SEQUENCE)
def positions(net, x, s):
    t, d = x.shape[1:]
    if s.a % 3 == 0:
        table = net.add(nn.Embedding(t + s.b % 3, d))
        return lambda x: x + table(torch.arange(t))
    p = net.parameter(1, t, d) if s.a % 3 == 1 else net.parameter(t + 1, d)
    return lambda x: x + (p if s.a % 3 == 1 else p[:t])


@step(SEQUENCE)
def class_token(net, x, s):
    token = net.parameter(1, 1, x.shape[-1])
    if s.a % 2:
        return lambda x: torch.cat([token.expand(len(x), -1, -1), x], 1)
    return lambda x: torch.cat([x, token.repeat(len(x), 1, 1)], 1)


@step(SEQUENCE)
def mixing_of_positions(net, x, s):
    inner = net.add(nn.Linear(x.shape[1], 1 + s.a % 4))
    return lambda x: inner(x.transpose(1, 2)).transpose(1, 2)


@step(SEQUENCE)
def convolution_over_time(net, x, s):
    part = net.add(nn.Conv1d(x.shape[-1], 1 + s.a % 3, 1 + s.b % 3, padding=1 + s.c % 2, stride=1 + s.c % 2))
    return lambda x: part(x.transpose(1, 2)).transpose(1, 2)


@step(SEQUENCE)
def norm_over_time(net, x, s):
    d = x.shape[-1]
    kinds = [
        *(nn.BatchNorm1d(d), nn.InstanceNorm1d(d, affine=True), nn.GroupNorm(1, d)),
        nn.InstanceNorm1d(d, affine=True, track_running_stats=True),
    ]
    if x.shape[1] == 1 and s.a % 4 == 1:
        return lambda x: x
    part = net.add(kinds[s.a % 4])
    return lambda x: part(x.transpose(1, 2)).transpose(1, 2)


@step(SEQUENCE, VECTOR)
def pooling_of_positions(net, x, s):
    query = net.parameter(x.shape[-1])
    operations = [
        *(lambda x: x.mean(1), lambda x: x.amax(1), lambda x: x[:, 0], lambda x: x[:, -1], lambda x: x.flatten(1)),
        *(lambda x: ((x @ query).softmax(1)[..., None] * x).sum(1), lambda x: x.sum(1), lambda x: x.logsumexp(1)),
    ]
    return operations[s.a % len(operations)]


@step(IMAGE)
def convolution(net, x, s):
    channels, size = x.shape[1], min(x.shape[2:])
    kernel, dilation, groups = 1 + s.a % min(3, size), 1 + s.c % 2, (1, channels)[s.b % 2]
    padding = 2 if dilation * max(kernel - 1, s.c % 2) >= size else s.c % 3
    mode = "zeros" if padding >= size or padding == 0 else ("zeros", "reflect", "replicate", "circular")[s.b % 4]
    part = nn.Conv2d(
        channels, groups * (1 + s.b % 2) if groups > 1 else 1 + s.b % 4, (kernel, 1 + s.c % 2), stride=1 + s.a % 2,
        padding=padding, dilation=dilation, groups=groups, bias=s.c % 3 > 0, padding_mode=mode,
    )  # fmt: skip
    return net.add(part)


@step(IMAGE)
def transposed_convolution(net, x, s):
    channels = x.shape[1]
    groups = (1, channels)[s.b % 2]
    part = nn.ConvTranspose2d(
        channels, groups * (1 + s.a % 2), 1 + s.a % 3, stride=1 + s.b % 2, output_padding=s.b % 2 * (s.c % 2),
        dilation=1 + s.c % 2 + s.b % 2 * (s.c % 2 == 0), groups=groups, bias=s.c % 3 > 0,
    )  # fmt: skip
    return net.add(part)


@step(IMAGE)
def residual_convolution(net, x, s):
    part = net.add(nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1))
    return lambda x: x + torch.tanh(part(x))


@step(IMAGE)
def norm_of_images(net, x, s):
    c = x.shape[1]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(c),
        lambda: nn.GroupNorm(c if s.b % 2 else 1, c),
        lambda: nn.InstanceNorm2d(c, affine=True),
        lambda: nn.LayerNorm(x.shape[1:]),
        lambda: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
        lambda: nn.LocalResponseNorm(2),
    ]
    if x[0, 0].numel() == 1 and s.a % 6 in (1, 2, 3):
        return lambda x: x
    return net.add(kinds[s.a % 6]())


@step(IMAGE)
def channels_last_norm(net, x, s):
    part, scale = net.add(nn.LayerNorm(x.shape[1])), net.parameter(x.shape[1], 1, 1)
    return lambda x: part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * scale


@step(IMAGE)
def squeeze_and_excite(net, x, s):
    down, up = net.add(nn.Conv2d(x.shape[1], 2, 1)), net.add(nn.Conv2d(2, x.shape[1], 1))
    return lambda x: x * torch.sigmoid(up(torch.tanh(down(x.mean((2, 3), keepdim=True)))))


@step(IMAGE)
def pooling_of_images(net, x, s):
    operations: list[Forward] = [
        *(lambda x: F.max_pool2d(x, 2, ceil_mode=True), lambda x: F.avg_pool2d(x, 2, ceil_mode=True)),
        *(lambda x: F.adaptive_avg_pool2d(x, 2), lambda x: F.interpolate(x, size=3), lambda x: x.flip(2)),
    ]
    return operations[s.a % len(operations)]


@step(IMAGE)
def pixel_shuffle(net, x, s):
    part = net.add(nn.Conv2d(x.shape[1], 4, 1))
    return lambda x: F.pixel_shuffle(part(x), 2)[:, :, :5, :5]


@step(IMAGE, SEQUENCE)
def as_tokens(net, x, s):
    return lambda x: x.flatten(2).transpose(1, 2) if s.a % 2 else x.flatten(2)


@step(IMAGE, VECTOR)
def pooled(net, x, s):
    return lambda x: x.mean((2, 3)) if s.a % 2 else x.flatten(1)


@step(TOKENS, SEQUENCE)
def embedding(net, x, s):
    table = net.add(nn.Embedding(VOCABULARY, 2 + s.a % 3, padding_idx=1 if s.b % 2 else None))
    if s.c % 2:
        net.table = table
    return table


@step(TOKENS, VECTOR)
def embedding_bag(net, x, s):
    return net.add(nn.EmbeddingBag(VOCABULARY, 2 + s.a % 3, mode=("sum", "mean", "max")[s.b % 3]))


@step(TOKENS, VECTOR)
def one_hot_vectors(net, x, s):
    weight = net.parameter(VOCABULARY, 3)
    if s.a % 2:
        return lambda x: (F.one_hot(x, VOCABULARY).to(weight.dtype) @ weight).mean(1)
    return lambda x: weight[x].sum(1)


NUMBERS = st.integers(0, 12)


@st.composite
def descriptions(draw: st.DrawFn, most_steps: int = 5) -> Description:
    """Networks whose steps fit one another."""
    kind = start = draw(st.sampled_from([VECTOR, SEQUENCE, IMAGE, TOKENS]))
    steps = []
    for _ in range(draw(st.integers(1, most_steps))):
        name, kind = draw(st.sampled_from(NEXT[kind]))
        steps.append(Step(name, draw(NUMBERS), draw(NUMBERS), draw(NUMBERS)))
    return Description(
        kind=start,
        steps=tuple(steps),
        samples=draw(st.sampled_from(SAMPLES)),
        classes=draw(st.integers(2, 5)),
        width=draw(st.integers(1, 4)),
        length=draw(st.integers(1, 5)),
        loss=draw(st.integers(0, 3)),
        frozen=draw(st.sampled_from([0, 0, 0, 2, 3])),
        double=draw(st.booleans()) or draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )
