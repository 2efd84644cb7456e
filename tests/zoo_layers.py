"""Layers of torch.nn: convolutions and normalisations of every kind, recurrent layers."""

import torch
from torch import nn

from tests.specimens import Specimen, head, of_function, parameter, specimen, vectors


def pooled(*body: nn.Module, inputs: torch.Tensor, width: int) -> Specimen:
    """Layers, then the mean over positions and a linear head."""
    return of_function(
        lambda m, x: m.out(m.body(x).tanh().flatten(2).mean(2)), inputs, body=nn.Sequential(*body), out=head(width)
    )


@specimen
def circular_and_reflected_padding():
    first = nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular")
    second = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    return pooled(first, nn.Tanh(), second, inputs=vectors(2, 5, 5), width=4)


@specimen
def unevenly_padded_convolution():
    return pooled(nn.Conv1d(3, 4, 4, padding="same", dilation=2), inputs=vectors(3, 9), width=4)


@specimen
def depthwise_separable_convolution():
    body = [nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 5, 1)]
    return Specimen(pooled(*body, inputs=vectors(4, 5, 5), width=5).model.eval(), vectors(4, 5, 5))


@specimen
def transposed_convolutions():
    one = nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2)
    return pooled(one, nn.Tanh(), nn.ConvTranspose1d(6, 3, 2, bias=False), inputs=vectors(4, 5), width=3)


@specimen
def transposed_convolution_3d():
    return pooled(nn.ConvTranspose3d(2, 3, 2, stride=2), inputs=vectors(2, 2, 2, 2), width=3)


@specimen
def grouped_convolution_3d():
    return pooled(nn.Conv3d(2, 4, 2, groups=2, stride=2, padding=1), inputs=vectors(2, 3, 3, 3), width=4)


@specimen
def frames_folded_into_the_batch():
    """A film: 3 images a sample pass the network as images of their own."""

    def forward(m, x):
        images = m.act(m.norm(m.conv(x.flatten(0, 1)))) + m.groups(m.shift(x.flatten(0, 1)))
        return m.out(images.mean((2, 3)).view(len(x), 3, -1).amax(1))

    specimen = of_function(
        forward,
        vectors(3, 2, 4, 4),
        conv=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        shift=nn.ConvTranspose2d(2, 4, 3, padding=1),
        groups=nn.GroupNorm(2, 4),
        act=nn.PReLU(4),
        out=head(4),
    )
    specimen.model.eval()
    return specimen


@specimen
def sub_pixel_convolution():
    return pooled(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.Conv2d(2, 4, 3), inputs=vectors(3, 5, 5), width=4)


@specimen
def patches_by_convolution():
    def forward(m, x):
        y = m.patch(x).flatten(2).transpose(1, 2)
        return m.out(m.inner(torch.cat([m.token.expand(len(x), -1, -1), y], 1) + m.place)[:, 0].tanh())

    return of_function(
        forward,
        vectors(3, 4, 4),
        patch=nn.Conv2d(3, 8, 2, 2),
        token=parameter(1, 1, 8),
        place=parameter(1, 5, 8),
        inner=nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True, norm_first=True),
        out=head(),
    )


@specimen
def squeeze_and_excitation():
    def forward(m, x):
        y = m.conv(x)
        gate = m.up(m.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m.out((y * gate).mean((2, 3)))

    return of_function(
        forward, vectors(3, 5, 5), conv=nn.Conv2d(3, 6, 3), down=nn.Conv2d(6, 2, 1), up=nn.Conv2d(2, 6, 1), out=head(6)
    )


@specimen
def local_response_norm():
    return pooled(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3, alpha=0.1), inputs=vectors(3, 5, 5), width=6)


@specimen
def instance_norm_1d():
    return pooled(nn.Conv1d(3, 4, 2), nn.InstanceNorm1d(4, affine=True), inputs=vectors(3, 7), width=4)


@specimen
def instance_norm_2d_with_running_statistics():
    model = pooled(
        nn.Conv2d(3, 4, 2),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        inputs=vectors(3, 4, 4),
        width=4,
    ).model
    with torch.no_grad():
        model(vectors(3, 4, 4) + 0.5)
    return Specimen(model.eval(), vectors(3, 4, 4))


@specimen
def instance_norm_3d():
    return pooled(nn.InstanceNorm3d(2, affine=True), nn.Tanh(), nn.Conv3d(2, 3, 2), inputs=vectors(2, 3, 3, 3), width=3)


def with_statistics(norm: nn.Module, inputs: torch.Tensor, width: int) -> Specimen:
    model = pooled(norm, inputs=inputs, width=width).model
    with torch.no_grad():
        model(inputs * 2 + 0.5)
    return Specimen(model.eval(), inputs)


@specimen
def batch_norm_1d_with_positions():
    return with_statistics(nn.BatchNorm1d(3), vectors(3, 5), 3)


@specimen
def batch_norm_3d():
    return with_statistics(nn.BatchNorm3d(2), vectors(2, 3, 3, 3), 2)


@specimen
def layer_norm_over_several_axes():
    return pooled(nn.Conv2d(3, 4, 2), nn.LayerNorm((4, 3, 3)), inputs=vectors(3, 4, 4), width=4)


@specimen
def layer_norm_without_bias():
    return pooled(nn.LayerNorm((3, 5), bias=False), inputs=vectors(3, 5), width=3)


@specimen
def channels_last_layer_norm():
    def forward(m, x):
        y = m.norm(m.conv(x).permute(0, 2, 3, 1))
        return m.out(m.down(m.up(y).relu()).mul(m.scale).permute(0, 3, 1, 2).mean((2, 3)))

    return of_function(
        forward,
        vectors(3, 5, 5),
        conv=nn.Conv2d(3, 6, 3, groups=3, padding=1),
        norm=nn.LayerNorm(6),
        up=nn.Linear(6, 8),
        down=nn.Linear(8, 6),
        scale=parameter(6),
        out=head(6),
    )


@specimen
def group_norm_of_vectors():
    return Specimen(nn.Sequential(nn.Linear(8, 6), nn.GroupNorm(3, 6), nn.ReLU(), head(6)), vectors())


@specimen
def rms_norm_by_hand():
    def forward(m, x):
        y = m.inner(x)
        return m.out((y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * (1 + m.weight)).mean(1))

    return of_function(forward, vectors(5, 8), inner=nn.Linear(8, 8), weight=parameter(8), out=head())


def recurrent(layer: nn.Module, width: int, batch_first: bool = True) -> Specimen:
    def forward(m, x):
        y = m.inner(x if batch_first else x.transpose(0, 1))[0]
        return m.out(y.mean(1 if batch_first else 0))

    return of_function(forward, vectors(5, 8), inner=layer, out=head(width))


@specimen
def lstm():
    return recurrent(nn.LSTM(8, 6, batch_first=True), 6)


@specimen
def lstm_of_two_layers_and_directions():
    return recurrent(nn.LSTM(8, 3, num_layers=2, bidirectional=True), 6, batch_first=False)


@specimen
def lstm_with_projection():
    return recurrent(nn.LSTM(8, 6, proj_size=3, batch_first=True), 3)


@specimen
def lstm_without_bias():
    return recurrent(nn.LSTM(8, 4, bias=False, batch_first=True), 4)


@specimen
def last_states_of_an_lstm():
    def forward(m, x):
        _, (hidden, cell) = m.inner(x)
        return m.out(torch.cat([hidden[0], cell[0]], 1))

    return of_function(forward, vectors(5, 8), inner=nn.LSTM(8, 3, batch_first=True), out=head(6))


@specimen
def lstm_with_learnable_start():
    def forward(m, x):
        start = m.start.expand(1, len(x), -1).contiguous()
        return m.out(m.inner(x, (start, torch.zeros_like(start)))[0][:, -1])

    return of_function(
        forward, vectors(5, 8), start=parameter(1, 1, 3), inner=nn.LSTM(8, 3, batch_first=True), out=head(3)
    )


@specimen
def gru_of_two_layers_and_directions():
    return recurrent(nn.GRU(8, 3, num_layers=2, bidirectional=True, batch_first=True), 6)


@specimen
def recurrent_cells():
    def forward(m, x):
        h = c = x.new_zeros(len(x), 4)
        a = b = h
        for step in x.unbind(1):
            h, c = m.lstm(step, (h, c))
            a, b = m.gru(step, a), m.rnn(step, b)
        return m.out(torch.cat([h, a, b], 1))

    return of_function(
        forward, vectors(3, 8), lstm=nn.LSTMCell(8, 4), gru=nn.GRUCell(8, 4), rnn=nn.RNNCell(8, 4), out=head(12)
    )


def packed(layer: nn.Module, width: int) -> Specimen:
    """Sequences of different lengths, decided by the samples themselves."""

    def forward(m, x):
        lengths = 2 + (x[:, 0, 0] > 0).long() + 2 * (x[:, 0, 1] > 0).long()
        sequences = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = nn.utils.rnn.pad_packed_sequence(m.inner(sequences)[0], batch_first=True, total_length=5)
        return m.out(output.sum(1))

    return of_function(forward, vectors(5, 8), inner=layer, out=head(width))


@specimen
def packed_gru():
    return packed(nn.GRU(8, 4, batch_first=True), 4)


@specimen
def packed_bidirectional_lstm():
    return packed(nn.LSTM(8, 3, bidirectional=True, batch_first=True), 6)
