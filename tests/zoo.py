"""Small models named by their quirk, each with a batch: what the engine must be exact on."""

from collections.abc import Callable

import torch
from torch import nn

from tests import zoo_attention, zoo_layers, zoo_limits, zoo_operands, zoo_products, zoo_tables  # noqa: F401
from tests.specimens import (
    CLASSES,
    MODELS,
    Applied,
    N,
    Specimen,
    build,
    head,
    parameter,
    specimen,
    tokens,
    vectors,
)

__all__ = ["CLASSES", "MODELS", "N", "Specimen", "build"]


@specimen
def mlp():
    return Specimen(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), head()), vectors())


@specimen
def linear_without_bias():
    return Specimen(
        nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, CLASSES, bias=False)), vectors()
    )


@specimen
def linear_with_positions():
    model = Applied(lambda m, x: m.out(torch.tanh(m.inner(x)).mean(1)), inner=nn.Linear(8, 8), out=head())
    return Specimen(model, vectors(5, 8))


@specimen
def linear_with_many_positions():
    model = Applied(lambda m, x: m.out(torch.tanh(m.inner(x)).mean(1)), inner=nn.Linear(3, 2), out=head(2))
    return Specimen(model, vectors(40, 3))


@specimen
def linear_with_wide_maps_and_few_positions():
    model = Applied(lambda m, x: m.out(torch.tanh(m.inner(x)).mean(1)), inner=nn.Linear(40, 40), out=head(40))
    return Specimen(model, vectors(2, 40))


@specimen
def cnn():
    body = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        head(20),
    ]
    return Specimen(nn.Sequential(*body), vectors(3, 8, 8))


@specimen
def grouped_strided_and_dilated_convolutions():
    body = [
        *(nn.Conv2d(4, 8, 3, groups=2, stride=2, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, groups=8, dilation=2, bias=False), nn.Flatten(), head(8)),
    ]
    return Specimen(nn.Sequential(*body), vectors(4, 10, 10))


@specimen
def convolution_1d():
    return Specimen(nn.Sequential(nn.Conv1d(3, 4, 5, padding="same"), nn.Tanh(), nn.Flatten(), head(36)), vectors(3, 9))


@specimen
def convolution_3d():
    return Specimen(nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten(), head(24)), vectors(2, 3, 3, 3))


@specimen
def transposed_convolution():
    body = [nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), nn.Tanh(), nn.Flatten(), head(300)]
    return Specimen(nn.Sequential(*body), vectors(4, 4, 4))


@specimen
def convolution_with_large_filters():
    body = [nn.Conv2d(48, 96, 3, stride=2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(96)]
    return Specimen(nn.Sequential(*body), vectors(48, 6, 6))


@specimen
def convolution_with_replicated_padding():
    body = [nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), nn.Tanh(), nn.Flatten(), head(48)]
    return Specimen(nn.Sequential(*body), vectors(2, 4, 4))


class Residual(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.first, self.first_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.second, self.second_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.out = head()

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.first_norm(self.first(x)))
        return self.out(torch.relu(x + self.second_norm(self.second(y))).mean((2, 3)))


@specimen
def resnet_with_batch_norm():
    model = Residual(nn.BatchNorm2d)
    with torch.no_grad():
        model(vectors(3, 6, 6) + 0.5)  # running statistics that are not the initial ones
    return Specimen(model.eval(), vectors(3, 6, 6))


@specimen
def resnet_with_group_norm():
    return Specimen(Residual(lambda channels: nn.GroupNorm(4, channels)), vectors(3, 6, 6))


@specimen
def batch_norm_of_vectors():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), head(6))
    with torch.no_grad():
        model(vectors() * 2)
    return Specimen(model.eval(), vectors())


@specimen
def layer_norm():
    return Specimen(nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.ReLU(), head(6)), vectors())


@specimen
def layer_norm_with_positions():
    model = Applied(
        lambda m, x: m.out(m.norm(m.inner(x)).amax(1)), inner=nn.Linear(8, 8), norm=nn.LayerNorm(8), out=head()
    )
    return Specimen(model, vectors(5, 8))


@specimen
def rms_norm():
    return Specimen(nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6), nn.ReLU(), head(6)), vectors())


def transformer(batch_first: bool, norm_first: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first, norm_first=norm_first)

    def forward(m, x):
        x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.position
        y = m.encoder(x if batch_first else x.transpose(0, 1))
        return m.out(y[:, 0] if batch_first else y[0])

    return Applied(forward, token=parameter(1, 1, 8), position=parameter(1, 6, 8), encoder=layer, out=head())


@specimen
def transformer_encoder():
    return Specimen(transformer(batch_first=True), vectors(5, 8))


@specimen
def transformer_encoder_time_first():
    return Specimen(transformer(batch_first=False, norm_first=True), vectors(5, 8))


@specimen
def stacked_transformer_in_eval_mode():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Specimen(
        Applied(lambda m, x: m.out(m.encoder(x).mean(1)), encoder=encoder, out=head()).eval(), vectors(5, 8)
    )


@specimen
def attention_batch_first():
    model = Applied(
        lambda m, x: m.out(m.attend(x, x, x, need_weights=False)[0].mean(1)),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        out=head(),
    )
    return Specimen(model, vectors(5, 8))


@specimen
def attention_time_first_with_as_many_positions_as_samples():
    model = Applied(
        lambda m, x: m.out(m.attend(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].mean(0)),
        attend=nn.MultiheadAttention(8, 2),
        out=head(),
    )
    return Specimen(model, vectors(N, 8))


@specimen
def cross_attention():
    model = Applied(
        lambda m, x: m.out(m.attend(x[:, :2], x, x, need_weights=False)[0].mean(1)),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        out=head(),
    )
    return Specimen(model, vectors(5, 8))


@specimen
def embedding():
    return Specimen(nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), head(48)), tokens())


@specimen
def embedding_with_padding():
    return Specimen(nn.Sequential(nn.Embedding(11, 8, padding_idx=0), nn.Flatten(), head(48)), tokens())


@specimen
def tied_embedding():
    def forward(m, x):
        return (torch.tanh(m.inner(m.table(x))) @ m.table.weight.t()).mean(1)[:, :CLASSES]

    return Specimen(Applied(forward, table=nn.Embedding(11, 8), inner=nn.Linear(8, 8)), tokens())


@specimen
def tied_embedding_module():
    model = Applied(
        lambda m, x: m.decode(torch.tanh(m.inner(m.table(x)))).mean(1)[:, :CLASSES],
        table=nn.Embedding(11, 8),
        inner=nn.Linear(8, 8),
        decode=nn.Linear(8, 11),
    )
    model.decode.weight = model.table.weight
    return Specimen(model, tokens())


@specimen
def tied_linear_weights():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), head())
    model[2].weight = model[0].weight
    return Specimen(model, vectors())


@specimen
def weight_tied_to_its_transpose():
    model = Applied(lambda m, x: m.out(torch.tanh(x @ m.weight) @ m.weight.t()), weight=parameter(8, 5), out=head())
    return Specimen(model, vectors())


@specimen
def layers_called_twice():
    def forward(m, x):
        return m.out(m.norm(m.inner(torch.tanh(m.norm(m.inner(x))))))

    return Specimen(Applied(forward, inner=nn.Linear(8, 8), norm=nn.LayerNorm(8), out=head()), vectors())


@specimen
def convolution_called_twice():
    model = Applied(
        lambda m, x: m.out(m.inner(torch.tanh(m.inner(x))).mean((2, 3))),
        inner=nn.Conv2d(3, 3, 3, padding=1),
        out=head(3),
    )
    return Specimen(model, vectors(3, 5, 5))


@specimen
def sliced_weight():
    model = Applied(lambda m, x: m.out(x @ m.weight[:8] + x @ m.weight[8:]), weight=parameter(16, 8), out=head())
    return Specimen(model, vectors())


@specimen
def overlapping_slices():
    model = Applied(
        lambda m, x: m.out(torch.tanh(x @ m.weight[:8]) + x @ m.weight[4:12]), weight=parameter(16, 8), out=head()
    )
    return Specimen(model, vectors())


@specimen
def gru():
    model = Applied(lambda m, x: m.out(m.inner(x)[0][:, -1]), inner=nn.GRU(8, 6, batch_first=True), out=head(6))
    return Specimen(model, vectors(5, 8))


@specimen
def rnn_of_two_layers_and_directions():
    inner = nn.RNN(8, 3, num_layers=2, bidirectional=True, batch_first=True)
    return Specimen(Applied(lambda m, x: m.out(m.inner(x)[0].mean(1)), inner=inner, out=head(6)), vectors(5, 8))


@specimen
def low_rank_adapter_beside_frozen_weights():
    model = Applied(
        lambda m, x: m.out(torch.tanh(m.frozen(x) + m.up(m.down(x)))),
        frozen=nn.Linear(8, 8).requires_grad_(False),
        down=nn.Linear(8, 2, bias=False),
        up=nn.Linear(2, 8, bias=False),
        out=head(),
    )
    model.out.weight.requires_grad_(False)
    return Specimen(model, vectors())


@specimen
def functional_weights_scale_and_shift():
    model = Applied(
        lambda m, x: m.out(torch.relu(x @ m.weight * m.scale - m.shift)),
        weight=parameter(8, 8),
        scale=parameter(8),
        shift=parameter(8),
        out=head(),
    )
    return Specimen(model, vectors())


@specimen
def scalar_scale():
    return Specimen(
        Applied(lambda m, x: m.out(x) * m.scale, out=head(), scale=nn.Parameter(torch.tensor(2.0))), vectors()
    )


@specimen
def channel_scale_and_spatial_shift():
    model = Applied(
        lambda m, x: m.out(torch.tanh(x * m.scale + m.shift).flatten(1)),
        scale=parameter(3, 1, 1),
        shift=parameter(1, 1, 4, 4),
        out=head(48),
    )
    return Specimen(model, vectors(3, 4, 4))


@specimen
def position_embedding_after_flattening():
    def forward(m, x):
        flat = x.reshape(-1, 8) + m.shift  # rows are (sample, position)
        return m.out(torch.tanh(flat).reshape(len(x), -1, 8).mean(1))

    return Specimen(Applied(forward, shift=parameter(8), out=head()), vectors(5, 8))


@specimen
def dictionary_of_inputs():
    model = Applied(
        lambda m, x: m.out(torch.relu(m.a(x["x"]) + m.b(x["z"]))), a=nn.Linear(8, 8), b=nn.Linear(3, 8), out=head()
    )
    return Specimen(model, {"x": vectors(), "z": vectors(3)})


@specimen
def unused_parameter():
    return Specimen(Applied(lambda m, x: m.out(x), out=head(), unused=nn.Linear(3, 3)), vectors())


def branch_on_a_value():
    def forward(m, x):
        if x.sum().item() > 1e9:
            return m.out(x)
        return m.out(torch.einsum("bd,dek,k->be", x, m.weight, x.new_ones(2)).tanh())

    return Specimen(Applied(forward, weight=parameter(8, 8, 2), out=head()), vectors(), fallback=("weight",))


def routing_by_value():
    def forward(m, x):
        first = x[:, 0] > 0
        mixed = torch.zeros_like(x).index_put((first,), m.a(x[first])).index_put((~first,), m.b(x[~first]))
        return m.out(torch.tanh(mixed))

    names = ("a.weight", "a.bias", "b.weight", "b.bias")
    return Specimen(Applied(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8), out=head()), vectors(), fallback=names)
