"""Matrix products of every kind, with a parameter on either side, and operations that work entry by entry."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.specimens import head, of_function, parameter, specimen, vectors


@specimen
def einsum_of_vectors():
    return of_function(
        lambda m, x: m.out(torch.einsum("bi,io->bo", x, m.weight).tanh()),
        vectors(),
        weight=parameter(8, 6),
        out=head(6),
    )


@specimen
def einsum_with_heads():
    return of_function(
        lambda m, x: m.out(torch.einsum("bti,hio->btho", x, m.weight).tanh().mean(1).flatten(1)),
        vectors(5, 8),
        weight=parameter(2, 8, 3),
        out=head(6),
    )


@specimen
def einsum_time_first():
    return of_function(
        lambda m, x: m.out(torch.einsum("tbi,hio->htbo", x.transpose(0, 1), m.weight).tanh().mean(1).sum(0)),
        vectors(5, 8),
        weight=parameter(2, 8, 6),
        out=head(6),
    )


@specimen
def weights_of_experts_with_dense_routing():
    def forward(m, x):
        each = torch.bmm(x.expand(3, *x.shape), m.weight) + m.bias
        return m.out((each.tanh() * m.gate(x).softmax(-1).t().unsqueeze(2)).sum(0))

    return of_function(
        forward, vectors(), weight=parameter(3, 8, 6), bias=parameter(3, 1, 6), gate=nn.Linear(8, 3), out=head(6)
    )


@specimen
def added_batched_product():
    return of_function(
        lambda m, x: m.out(
            torch.baddbmm(m.bias, x.transpose(0, 1), m.weight, beta=0.5, alpha=2).tanh().transpose(0, 1).flatten(1)
        ),
        vectors(3, 8),
        weight=parameter(3, 8, 2),
        bias=parameter(3, 1, 2),
        out=head(6),
    )


@specimen
def experts_as_left_factors():
    return of_function(
        lambda m, x: m.out(torch.bmm(m.weight, x.permute(1, 2, 0)).tanh().sum(0).t()),
        vectors(3, 8),
        weight=parameter(3, 6, 8),
        out=head(6),
    )


@specimen
def left_factor_of_a_product():
    return of_function(
        lambda m, x: m.out((m.weight @ x.t()).tanh().t()), vectors(), weight=parameter(6, 8), out=head(6)
    )


@specimen
def left_factor_of_an_added_product():
    return of_function(
        lambda m, x: m.out(torch.addmm(m.shift, m.weight, x.t(), beta=2, alpha=0.5).tanh().t()),
        vectors(),
        weight=parameter(6, 8),
        shift=parameter(6, 1),
        out=head(6),
    )


@specimen
def scaled_added_product():
    return of_function(
        lambda m, x: m.out(torch.addmm(m.shift, x, m.weight, beta=2, alpha=0.5).tanh()),
        vectors(),
        weight=parameter(8, 6),
        shift=parameter(6),
        out=head(6),
    )


@specimen
def token_mixing():
    return of_function(
        lambda m, x: m.out(F.gelu(torch.matmul(m.weight, x) + m.shift).mean(1)),
        vectors(5, 8),
        weight=parameter(4, 5),
        shift=parameter(4, 1),
        out=head(),
    )


@specimen
def token_mixing_by_transposition():
    model = nn.Linear(5, 3)
    return of_function(
        lambda m, x: m.out(F.gelu(m.mix(x.transpose(1, 2))).flatten(1)), vectors(5, 8), mix=model, out=head(24)
    )


@specimen
def token_mixing_by_einsum():
    return of_function(
        lambda m, x: m.out(torch.einsum("ts,bsd->btd", m.weight, x).tanh().mean(1)),
        vectors(5, 8),
        weight=parameter(4, 5),
        out=head(),
    )


@specimen
def product_with_a_vector():
    return of_function(
        lambda m, x: m.out((x * (x @ m.query).softmax(1).unsqueeze(2)).sum(1)),
        vectors(5, 8),
        query=parameter(8),
        out=head(),
    )


@specimen
def added_product_with_a_vector():
    return of_function(
        lambda m, x: m.out(x * torch.addmv(m.shift, x, m.query, beta=0.5, alpha=2).tanh().unsqueeze(1)),
        vectors(),
        query=parameter(8),
        shift=parameter(1),
        out=head(),
    )


@specimen
def vector_times_matrix():
    return of_function(
        lambda m, x: m.out(x * (m.query @ x.t()).tanh().unsqueeze(1)), vectors(), query=parameter(8), out=head()
    )


@specimen
def bilinear():
    return of_function(
        lambda m, x: m.out(m.pair(x, x[:, :3]).tanh()), vectors(), pair=nn.Bilinear(8, 3, 6), out=head(6)
    )


@specimen
def bilinear_with_positions():
    return of_function(
        lambda m, x: m.out(m.pair(x, x[..., :3]).tanh().mean(1)),
        vectors(5, 8),
        pair=nn.Bilinear(8, 3, 6, bias=False),
        out=head(6),
    )


@specimen
def products_added_entry_by_entry():
    return of_function(
        lambda m, x: m.out(torch.addcmul(m.shift, x, m.scale, value=0.5) + torch.addcdiv(x, m.scale, x.exp())),
        vectors(),
        shift=parameter(8),
        scale=parameter(8),
        out=head(),
    )


@specimen
def interpolation():
    return of_function(
        lambda m, x: m.out(torch.lerp(x, x.tanh(), m.weight) + torch.lerp(x, m.end, 0.3)),
        vectors(5, 8)[:, 0],
        weight=parameter(8),
        end=parameter(8),
        out=head(),
    )


@specimen
def divided_by_a_parameter():
    return of_function(
        lambda m, x: m.out(x / m.scale + m.numerator / (x.square() + 1)),
        vectors(),
        scale=nn.Parameter(torch.rand(8) + 1),
        numerator=parameter(1),
        out=head(),
    )


@specimen
def learnable_exponent():
    """Generalised-mean pooling."""
    return of_function(
        lambda m, x: m.out(x.abs().clamp_min(0.1).pow(m.power).mean(1).pow(1 / m.power)),
        vectors(5, 8),
        power=nn.Parameter(torch.tensor([3.0])),
        out=head(),
    )


@specimen
def choice_by_a_mask():
    return of_function(
        lambda m, x: m.out(torch.where(x > 0, x, m.other) + x.masked_fill(x < -0.5, m.fill)),
        vectors(),
        other=parameter(8),
        fill=nn.Parameter(torch.tensor(0.7)),
        out=head(),
    )


@specimen
def learnable_thresholds():
    def forward(m, x):
        low, high = torch.maximum(x, m.low), torch.minimum(x, m.high)
        return m.out(low + 2 * high + 3 * x.clamp(m.low, m.high) + x.clamp_min(m.low) * x.clamp_max(m.high))

    return of_function(forward, vectors(), low=parameter(8), high=nn.Parameter(torch.rand(8) + 0.5), out=head())


@specimen
def soft_maximum_with_a_parameter():
    return of_function(
        lambda m, x: m.out(torch.logaddexp(x, m.floor) + torch.rsub(m.shift, x)),
        vectors(),
        floor=parameter(8),
        shift=parameter(8),
        out=head(),
    )


@specimen
def repeated_tokens():
    return of_function(
        lambda m, x: m.out(torch.cat([m.token.repeat(len(x), 2, 1), x * m.scale.repeat(1, 5, 2)], 1).tanh().mean(1)),
        vectors(5, 8),
        token=parameter(1, 1, 8),
        scale=parameter(1, 1, 4),
        out=head(),
    )


@specimen
def mask_tokens_written_in_place():
    def forward(m, x):
        x = x.clone()
        x[:, 0] = m.token
        return m.out(m.inner(x).tanh().mean(1))

    return of_function(forward, vectors(5, 8), token=parameter(8), inner=nn.Linear(8, 8), out=head())


@specimen
def learnable_slope():
    return of_function(
        lambda m, x: m.out(m.act(m.inner(x))), vectors(), inner=nn.Linear(8, 8), act=nn.PReLU(), out=head()
    )


@specimen
def learnable_slope_of_each_channel():
    return of_function(lambda m, x: m.out(m.act(x).mean((2, 3))), vectors(3, 4, 4), act=nn.PReLU(3), out=head(3))


@specimen
def scale_of_each_layer():
    return of_function(
        lambda m, x: m.out((x + m.scale * m.inner(x).tanh()).mean(1)),
        vectors(5, 8),
        scale=nn.Parameter(torch.full((8,), 1e-2)),
        inner=nn.Linear(8, 8),
        out=head(),
    )


@specimen
def cosine_classifier_with_temperature():
    def forward(m, x):
        return F.linear(F.normalize(x), F.normalize(m.prototypes)) * m.temperature.exp()

    return of_function(forward, vectors(), prototypes=parameter(4, 8), temperature=nn.Parameter(torch.tensor(1.0)))


@specimen
def distances_to_prototypes():
    return of_function(
        lambda m, x: -(m.inner(x)[:, None] - m.prototypes).square().sum(2),
        vectors(),
        inner=nn.Linear(8, 5),
        prototypes=parameter(4, 5),
    )
