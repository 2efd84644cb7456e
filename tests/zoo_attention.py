"""Attention of every kind, and the transformer layers of torch.nn."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.specimens import head, of_function, parameter, specimen, tokens, vectors


def attending(attend: nn.Module, keys=lambda x: x, values=lambda x: x, **arguments):
    def forward(m, x):
        return m.out(m.attend(x, keys(x), values(x), **arguments)[0].mean(1))

    return of_function(forward, vectors(5, 8), attend=attend, out=head())


@specimen
def attention_of_other_widths():
    return attending(
        nn.MultiheadAttention(8, 2, kdim=3, vdim=2, batch_first=True), lambda x: x[..., :3], lambda x: x[..., 3:5]
    )


@specimen
def attention_with_learnable_keys_and_values():
    return attending(nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True))


@specimen
def attention_without_bias_under_a_mask():
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    return attending(nn.MultiheadAttention(8, 2, bias=False, batch_first=True), attn_mask=mask, need_weights=False)


@specimen
def attention_with_padding():
    def forward(m, x):
        padding = torch.arange(5) > 2 + 2 * (x[:, :1, 0] > 0)  # of lengths that the samples decide
        y = m.attend(x, x, x, key_padding_mask=padding)[0]
        return m.out((y * ~padding.unsqueeze(2)).sum(1))

    return of_function(forward, vectors(5, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True), out=head())


@specimen
def attention_in_eval_mode():
    specimen = attending(nn.MultiheadAttention(8, 2, batch_first=True), need_weights=False)
    specimen.model.eval()
    return specimen


@specimen
def attention_with_learnable_bias():
    def forward(m, x):
        query, key, value = m.inner(x).view(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return m.out(F.scaled_dot_product_attention(query, key, value, attn_mask=m.bias).mean((1, 2)))

    return of_function(forward, vectors(5, 8), inner=nn.Linear(8, 24), bias=parameter(2, 5, 5), out=head(4))


@specimen
def causal_attention_with_fused_projection():
    def forward(m, x):
        x = m.table(x)
        query, key, value = m.inner(x).chunk(3, -1)
        y = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], is_causal=True)[:, 0]
        return m.out((x + m.project(y))[:, -1])

    return of_function(
        forward, tokens(), table=nn.Embedding(11, 8), inner=nn.Linear(8, 24), project=nn.Linear(8, 8), out=head()
    )


@specimen
def linear_attention_with_learnable_queries():
    def forward(m, x):
        weights = torch.einsum("qd,btd->bqt", m.queries, m.key(x)).softmax(-1)
        return m.out(torch.einsum("bqt,btd->bqd", weights, x).flatten(1))

    return of_function(forward, vectors(5, 8), queries=parameter(2, 8), key=nn.Linear(8, 8), out=head(16))


@specimen
def talking_heads():
    def forward(m, x):
        scores = torch.einsum("bhid,bhjd->bhij", *m.inner(x).view(len(x), 5, 2, 2, 4).permute(2, 0, 3, 1, 4))
        scores = torch.einsum("bhij,hg->bgij", scores, m.mix).softmax(-1)
        return m.out((scores.sum(1) @ x).mean(1))

    return of_function(forward, vectors(5, 8), inner=nn.Linear(8, 16), mix=parameter(2, 2), out=head())


@specimen
def rotary_positions():
    def forward(m, x):
        angle = torch.arange(5.0, dtype=x.dtype)[:, None] / torch.tensor([1.0, 10.0], dtype=x.dtype)
        turned = []
        for y in (m.query(x), m.key(x)):
            even, odd = y[..., ::2], y[..., 1::2]
            turned.append(
                torch.stack([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], -1)
            )
        query, key = (y.flatten(2) for y in turned)
        return m.out(((query @ key.transpose(1, 2)).softmax(-1) @ x).mean(1))

    return of_function(forward, vectors(5, 8), query=nn.Linear(8, 4), key=nn.Linear(8, 4), out=head())


@specimen
def transformer_decoder():
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return of_function(
        lambda m, x: m.out(m.decoder(x[:, :3], x[:, 3:]).mean(1)),
        vectors(5, 8),
        decoder=nn.TransformerDecoder(layer, 2),
        out=head(),
    )


@specimen
def transformer_decoder_time_first():
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, norm_first=True, activation="gelu")
    return of_function(
        lambda m, x: m.out(m.decoder(x[:, :3].transpose(0, 1), x[:, 3:].transpose(0, 1)).mean(0)),
        vectors(5, 8),
        decoder=layer,
        out=head(),
    )


@specimen
def encoder_in_eval_mode_with_padding():
    """Torch would take a path with nested tensors, if no gradient were wanted."""

    def forward(m, x):
        padding = torch.arange(5) > 2 + 2 * (x[:, :1, 0] > 0)
        return m.out((m.encoder(x, src_key_padding_mask=padding) * ~padding.unsqueeze(2)).sum(1))

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    specimen = of_function(forward, vectors(5, 8), encoder=nn.TransformerEncoder(layer, 2), out=head())
    specimen.model.eval()
    return specimen


@specimen
def whole_transformer():
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    return of_function(lambda m, x: m.out(m.body(x[:, :3], x[:, 2:]).mean(1)), vectors(5, 8), body=model, out=head())
