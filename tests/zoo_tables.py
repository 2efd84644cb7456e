"""Look-ups by the values of a sample: embeddings of all kinds, and parameters read at indices."""

import torch
from torch import nn

from tests.specimens import N, Specimen, head, of_function, parameter, specimen, tokens, vectors


def bagged(**arguments):
    model = nn.EmbeddingBag(11, 8, **arguments)
    return of_function(lambda m, x: m.out(m.bag(x).tanh()), tokens(), bag=model, out=head())


@specimen
def embedding_bag_of_sums():
    return bagged(mode="sum")


@specimen
def embedding_bag_of_means_with_padding():
    return bagged(mode="mean", padding_idx=3)


@specimen
def embedding_bag_of_maxima():
    return bagged(mode="max")


@specimen
def weighted_embedding_bag():
    return of_function(
        lambda m, x: m.out(m.bag(x, per_sample_weights=x.to(m.out.weight) / 5).tanh()),
        tokens(),
        bag=nn.EmbeddingBag(11, 8, mode="sum"),
        out=head(),
    )


@specimen
def embedding_bags_of_different_sizes():
    def forward(m, x):
        lengths = x[:, 0] % 4 + (x[:, 0] % 4 == 0)  # decided by the sample itself
        kept = torch.arange(x.shape[1]) < lengths[:, None]
        offsets = lengths.cumsum(0) - lengths
        return m.out(m.bag(x[kept], offsets).tanh())

    return of_function(forward, tokens(), bag=nn.EmbeddingBag(11, 8, mode="mean"), out=head())


@specimen
def several_bags_a_sample():
    return of_function(
        lambda m, x: m.out(m.bag(x.reshape(-1, 3)).tanh().view(len(x), -1)),
        tokens(),
        bag=nn.EmbeddingBag(11, 4, mode="max"),
        out=head(8),
    )


@specimen
def sparse_embedding():
    return Specimen(nn.Sequential(nn.Embedding(11, 8, sparse=True), nn.Flatten(), head(48)), tokens())


@specimen
def embedding_renormalised_in_the_forward_pass():
    """max_norm: the module shortens its rows as they are read, here once before the measurement."""
    model = nn.Sequential(nn.Embedding(11, 8, max_norm=1.0), nn.Flatten(), head(48))
    with torch.no_grad():
        model(tokens())
    return Specimen(model, tokens())


@specimen
def embedding_of_time_first_tokens():
    return of_function(
        lambda m, x: m.out(m.table(x.t()).tanh().mean(0)), tokens(), table=nn.Embedding(11, 8), out=head()
    )


@specimen
def parameter_read_at_tokens():
    return of_function(lambda m, x: m.out(m.table[x].tanh().mean(1)), tokens(), table=parameter(11, 8), out=head())


@specimen
def parameter_read_at_pairs():
    return of_function(
        lambda m, x: m.out(m.table[x[:, :4], x[:, 1:5]].tanh()), tokens(), table=parameter(11, 11), out=head(4)
    )


@specimen
def columns_selected_by_tokens():
    return of_function(
        lambda m, x: m.out(m.table.index_select(1, x.flatten()).t().reshape(len(x), -1).tanh()),
        tokens(),
        table=parameter(2, 11),
        out=head(12),
    )


@specimen
def rows_selected_by_tokens():
    return of_function(
        lambda m, x: m.out(m.table.index_select(0, x.flatten()).view(len(x), -1, 8).tanh().mean(1)),
        tokens(),
        table=parameter(11, 8),
        out=head(),
    )


@specimen
def entries_gathered_by_tokens():
    def forward(m, x):
        return m.out(m.table.gather(0, x).tanh() + torch.take(m.flat, x))

    return of_function(forward, tokens(6, N), table=parameter(N, 6), flat=parameter(5, 5), out=head(6))


@specimen
def embedding_tied_to_a_parameter_read_directly():
    return of_function(
        lambda m, x: m.out((m.table(x) + m.table.weight[x.flip(1)]).tanh().mean(1)),
        tokens(),
        table=nn.Embedding(11, 8),
        out=head(),
    )


@specimen
def tokens_and_classes_embedded():
    def forward(m, x):
        kind = m.kinds(torch.zeros_like(x))
        return m.out(m.norm(m.words(x) + kind + m.places.weight[: x.shape[1]]).mean(1))

    return of_function(
        forward,
        tokens(),
        words=nn.Embedding(11, 8),
        kinds=nn.Embedding(2, 8),
        places=nn.Embedding(9, 8),
        norm=nn.LayerNorm(8),
        out=head(),
    )


@specimen
def mask_token_by_a_mask():
    def forward(m, x):
        masked = x[..., :1] > 0.5
        return m.out(m.inner(torch.where(masked, m.token, x)).tanh().mean(1))

    return of_function(forward, vectors(5, 8), token=parameter(8), inner=nn.Linear(8, 8), out=head())
