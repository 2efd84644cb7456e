"""What has no rule, or none for the case: measured by the fallback, exactly."""

import torch
from torch import nn

from tests.specimens import head, of_function, parameter, specimen, tokens, vectors


@specimen
def pairwise_distances():
    return of_function(
        lambda m, x: m.out((-torch.cdist(x, m.centres)).exp()),
        vectors(),
        fallback=("centres",),
        centres=parameter(6, 8),
        out=head(6),
    )


@specimen
def convolutions_over_the_batch_axis():
    """Samples as channels of one convolution of depth one."""
    return of_function(
        lambda m, x: m.out(nn.functional.conv1d(x[None].transpose(1, 2), m.weight).squeeze(0).t().tanh()),
        vectors(),
        fallback=("weight",),
        weight=parameter(6, 8, 1),
        out=head(6),
    )


@specimen
def experts_chosen_by_value():
    """The samples of each expert are gathered, and put back where they came from."""

    def forward(m, x):
        choice = m.gate(x)
        weight, expert = choice.softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for k, layer in enumerate(m.experts):
            chosen = (expert == k).nonzero().flatten()
            y = y.index_add(0, chosen, layer(x[chosen]) * weight[chosen, None])
        return m.out(y.tanh())

    return of_function(
        forward,
        vectors(),
        gate=nn.Linear(8, 2),
        experts=nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
        out=head(),
    )


@specimen
def tokens_sent_to_experts():
    """Tokens of all samples together, sorted by expert."""

    def forward(m, x):
        flat = m.table(x).flatten(0, 1)
        expert = (m.gate(flat)[:, 0] > 0).long()
        order = expert.argsort(stable=True)
        first, second = flat[order].split([int((expert == 0).sum()), int((expert == 1).sum())])
        y = torch.cat([m.first(first).tanh(), m.second(second).relu()])[order.argsort()]
        return m.out(y.view(len(x), -1, 8).mean(1))

    return of_function(
        forward,
        tokens(),
        table=nn.Embedding(11, 8),
        gate=nn.Linear(8, 1).requires_grad_(False),
        first=nn.Linear(8, 8),
        second=nn.Linear(8, 8),
        out=head(),
    )


@specimen
def samples_one_by_one():
    """A loop over the samples in the user's own code: each has a graph of its own."""

    def forward(m, x):
        return torch.stack([m.out(m.inner(one).tanh()) for one in x])

    return of_function(forward, vectors(), inner=nn.Linear(8, 8), out=head())


@specimen
def gradient_inside_the_forward_pass():
    """As in networks of energies and forces; torch.func refuses hooks on saved tensors."""

    def forward(m, x):
        force = torch.func.vmap(torch.func.grad(lambda one: m.inner(one).tanh().square().sum()))(x)
        return m.out((x + force).tanh())

    return of_function(forward, vectors(), inner=nn.Linear(8, 8), out=head())
