from types import SimpleNamespace

import threadpoolctl
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.gram import products
from lightning_stiffness.gram.products import Block, GramAccumulator, has_symmetric_product, symmetric_product, whole
from tests.unchecked import unchecked_types


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))


@given(samples=st.integers(1, 40), rows=st.integers(1, 7), has_symmetric=st.booleans())
def test_tiles_cover_the_upper_triangle(samples, rows, has_symmetric):
    before, products.SYMMETRIC_ROWS = products.SYMMETRIC_ROWS, rows
    try:
        gradients = random(samples, 1100)
        block = Block(range(samples), range(samples))
        covered = torch.zeros(samples, samples)
        for first, second in products._tiles_of(block, has_symmetric):
            covered[first, second] += 1
        total = GramAccumulator(whole(samples), gradients.new_empty(0), 1 << 20)
        total.add_dense(gradients)
        total.add_outer(gradients[:, :3], gradients[:, 3:5], bias=True)
    finally:
        products.SYMMETRIC_ROWS = before
    assert bool((covered.triu() == torch.ones_like(covered).triu()).all())
    outer = torch.einsum("na,nb->nab", gradients[:, :3], gradients[:, 3:5]).flatten(1)
    columns = torch.cat([gradients, outer, gradients[:, 3:5]], 1)
    assert torch.allclose(total.results()[0], columns @ columns.T)


@given(data=st.data(), samples=st.integers(2, 12))
def test_blocks_are_cut_from_the_whole(data, samples):
    cut = data.draw(st.integers(1, samples - 1))
    blocks = [
        Block(range(cut), range(cut, samples)),
        Block(range(cut), range(cut)),
        Block(range(cut, samples), range(cut)),
    ]
    left, right = random(samples, 3, 4), random(samples, 3, 5)
    rows = torch.arange(samples)
    full, parts = (GramAccumulator(wanted, left.new_empty(0), 200) for wanted in (whole(samples), blocks))
    for total in (full, parts):
        total.add_outer(left[:, 0], right[:, 0], bias=False)
        total.add_outer_positions(left, right)
        total.add_dense(left[:, 1])
        total.add_matrix(left[:, 0] @ left[:, 0].T)
        total.add_scattered(rows[:, None], rows[None], torch.ones(samples, samples, dtype=torch.float64))
    (expected,) = full.results()
    for block, found in zip(blocks, parts.results(), strict=True):
        assert torch.allclose(
            found, expected[block.rows.start : block.rows.stop, block.columns.start : block.columns.stop]
        )


def test_blas_has_one_thread(monkeypatch):
    seen = []

    def looked_at(array):
        seen.extend(entry["num_threads"] for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "blas")
        return torch.from_numpy(array)

    monkeypatch.setattr(products, "torch", SimpleNamespace(from_numpy=looked_at, get_num_threads=lambda: 1))
    with unchecked_types():
        symmetric_product(random(64, 32))
    assert set(seen) == {1}


def test_with_more_threads_the_products_are_those_of_torch(monkeypatch):
    assert has_symmetric_product(random(2, 2)) == (torch.get_num_threads() == 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not has_symmetric_product(random(2, 2))
    gradients = random(300, 1100)
    total = GramAccumulator(whole(300), gradients.new_empty(0), 1 << 20)
    total.add_dense(gradients)
    assert torch.allclose(total.results()[0], gradients @ gradients.T)


def test_symmetric_product_is_symmetric_and_right():
    rows = random(300, 70, dtype=torch.float32)
    product = symmetric_product(rows)
    assert torch.equal(product, product.T)
    assert torch.allclose(product.double(), rows.double() @ rows.double().T, atol=1e-4)
