"""Values computed from parameters alone: normalised and merged weights, gates, mixtures, constant look-ups."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.specimens import CLASSES, Specimen, head, of_function, parameter, specimen, tokens, vectors


@specimen
def parametrized_weight_norm():
    return Specimen(nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh(), head()), vectors())


@specimen
def weight_norm_of_a_convolution():
    body = [parametrizations.weight_norm(nn.Conv1d(3, 4, 3)), nn.Tanh(), nn.Flatten(), head(28)]
    return Specimen(nn.Sequential(*body), vectors(3, 9))


@specimen
def spectral_norm_in_eval_mode():
    return Specimen(
        nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Tanh(), head(6)).eval(), vectors()
    )


@specimen
def orthogonal_weights():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Tanh(), head())
    return Specimen(model, vectors())


@specimen
def merged_low_rank_adapter():
    def forward(m, x):
        return m.out(torch.tanh(F.linear(x, m.inner.weight + 0.5 * m.up @ m.down, m.inner.bias)))

    return of_function(forward, vectors(), inner=nn.Linear(8, 8), up=parameter(8, 2), down=parameter(2, 8), out=head())


@specimen
def merged_adapter_of_frozen_weights():
    def forward(m, x):
        return m.out(torch.tanh(F.linear(x, m.inner.weight + m.up @ m.down)).mean(1))

    return of_function(
        forward,
        vectors(5, 8),
        inner=nn.Linear(8, 8).requires_grad_(False),
        up=parameter(8, 2),
        down=parameter(2, 8),
        out=head(),
    )


@specimen
def weight_used_raw_and_normalised():
    def forward(m, x):
        return m.out(torch.tanh(F.linear(x, m.weight)) + F.linear(x, F.normalize(m.weight)))

    return of_function(forward, vectors(), weight=parameter(8, 8), out=head())


@specimen
def weight_behind_two_functions():
    def forward(m, x):
        return m.out(torch.tanh(x @ m.weight.sigmoid()) + x @ (m.weight * m.scale).t())

    return of_function(forward, vectors(), weight=parameter(8, 8), scale=parameter(8), out=head())


@specimen
def normalised_weight_used_twice():
    def forward(m, x):
        weight = m.weight / m.weight.norm(dim=1, keepdim=True)
        return m.out(torch.tanh(torch.tanh(x @ weight) @ weight.t()))

    return of_function(forward, vectors(5, 8)[:, 1], weight=parameter(8, 8), out=head())


@specimen
def normalised_weight_in_slices():
    def forward(m, x):
        query, key, value = F.normalize(m.weight, dim=1).chunk(3)
        return m.out(torch.tanh(x @ query.t()) * (x @ key.t()) + x @ value.t())

    return of_function(forward, vectors(), weight=parameter(24, 8), out=head())


@specimen
def standardised_filters():
    def forward(m, x):
        mean = m.conv.weight.mean((1, 2, 3), keepdim=True)
        deviation = m.conv.weight.var((1, 2, 3), keepdim=True).add(1e-5).sqrt()
        weight = m.gain * (m.conv.weight - mean) / deviation
        return m.out(F.conv2d(x, weight, m.conv.bias, padding=1).relu().mean((2, 3)))

    return of_function(forward, vectors(3, 5, 5), conv=nn.Conv2d(3, 4, 3), gain=parameter(4, 1, 1, 1), out=head(4))


@specimen
def gates_and_temperature():
    def forward(m, x):
        return m.out(torch.sigmoid(m.gate) * x + F.softplus(m.floor)) * m.temperature.exp()

    return of_function(
        forward,
        vectors(),
        gate=parameter(8),
        floor=parameter(8),
        temperature=nn.Parameter(torch.tensor(0.3)),
        out=head(),
    )


@specimen
def mixture_of_layers():
    def forward(m, x):
        mixing = m.mixing.softmax(0)
        return m.out(mixing[0] * m.first(x).tanh() + mixing[1] * m.second(x).relu() + mixing[2] * x)

    return of_function(
        forward, vectors(), mixing=parameter(3), first=nn.Linear(8, 8), second=nn.Linear(8, 8), out=head()
    )


@specimen
def relative_position_bias():
    index = torch.arange(5)[:, None] - torch.arange(5)[None] + 4

    def forward(m, x):
        query, key = m.query(x), m.key(x)
        bias = m.table[m.index.flatten()].view(5, 5, 2).permute(2, 0, 1)
        heads = torch.stack([query @ key.transpose(1, 2)] * 2, 1)
        return m.out(((heads + bias).softmax(-1) @ x[:, None]).mean((1, 2)))

    specimen = of_function(
        forward, vectors(5, 8), query=nn.Linear(8, 4), key=nn.Linear(8, 4), table=parameter(9, 2), out=head()
    )
    specimen.model.register_buffer("index", index)
    return specimen


@specimen
def position_embedding_by_look_up():
    def forward(m, x):
        return m.out(torch.tanh(m.inner(m.words(x) + m.places(torch.arange(x.shape[1])))).mean(1))

    return of_function(
        forward,
        tokens(),
        words=nn.Embedding(11, 8),
        places=nn.Embedding(9, 8, padding_idx=2),
        inner=nn.Linear(8, 8),
        out=head(),
    )


@specimen
def position_embedding_by_slice():
    return of_function(
        lambda m, x: m.out(torch.tanh(m.inner(x + m.places[:, : x.shape[1]])).mean(1)),
        vectors(5, 8),
        places=parameter(1, 9, 8),
        inner=nn.Linear(8, 8),
        out=head(),
    )


@specimen
def interpolated_position_embedding():
    def forward(m, x):
        places = F.interpolate(m.places, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
        return m.out(torch.tanh(m.inner(x + places)).mean(1))

    return of_function(forward, vectors(16, 8), places=parameter(1, 8, 2, 2), inner=nn.Linear(8, 8), out=head())


@specimen
def concatenated_parameters():
    def forward(m, x):
        weight, bias = torch.cat([m.a, m.b]), torch.stack([m.c, m.d]).flatten()
        return m.out(torch.tanh(F.linear(x, weight, bias)))

    return of_function(
        forward, vectors(), a=parameter(5, 8), b=parameter(3, 8), c=parameter(4), d=parameter(4), out=head()
    )


@specimen
def prompts_before_the_tokens():
    def forward(m, x):
        prompts = torch.cat([m.token, m.project(m.prompts)], 0)
        return m.out(torch.tanh(m.inner(torch.cat([prompts.expand(len(x), -1, -1), x], 1))).mean(1))

    return of_function(
        forward,
        vectors(5, 8),
        token=parameter(1, 8),
        prompts=parameter(2, 3),
        project=nn.Linear(3, 8),
        inner=nn.Linear(8, 8),
        out=head(),
    )


@specimen
def weights_made_by_a_network():
    def forward(m, x):
        weight = m.maker(m.code).view(8, 8)
        return m.out(torch.tanh(x @ weight))

    maker = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 64))
    return of_function(forward, vectors(), code=parameter(3), maker=maker, out=head())


@specimen
def filters_of_frequencies():
    def forward(m, x):
        return m.out(torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.filter), n=8))

    return of_function(forward, vectors(), fallback=("filter",), filter=parameter(5, 2), out=head())


@specimen
def penalty_in_the_loss():
    """The same amount on every sample's loss, by way of the logits."""
    return of_function(
        lambda m, x: m.out(x) + m.penalised.square().sum() * x[:, :CLASSES],
        vectors(),
        penalised=parameter(3),
        out=head(),
    )


@specimen
def norm_of_parameters():
    """A layer norm over the queries of a perceiver, before they meet the batch."""
    return of_function(
        lambda m, x: m.out((m.norm(m.queries) @ x.transpose(1, 2)).softmax(-1).matmul(x).mean(1)),
        vectors(5, 8),
        queries=parameter(3, 8),
        norm=nn.LayerNorm(8),
        out=head(),
    )


@specimen
def binary_weights_by_straight_through():
    def forward(m, x):
        weight = m.weight + (m.weight.sign() - m.weight).detach()
        return m.out(torch.tanh(x @ weight))

    return of_function(forward, vectors(), weight=parameter(8, 8), out=head())
