"""Parameters that are shared out among processes."""

import pytest

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.sharding import held, is_sharded, shared_out, whole, whole_tensor
from tests.gram.sharding_process import CASES, main
from tests.gram.wrapped_process import batch, network
from tests.oracle import cross_entropy
from tests.processes import in_processes


def test_a_plain_module_is_left_alone():
    model = network()
    parameters = list(model.parameters())
    with whole(model):
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not is_sharded(model)
    assert held(parameters[0]) is parameters[0]
    assert whole_tensor(parameters[0]) is parameters[0]
    assert shared_out(parameters[0], parameters[1]) is parameters[0]


@pytest.mark.parametrize("mark", ["ds_id", "_fsdp_flattened"])
def test_marks_of_other_ways_to_share_out(mark):
    model = network()
    setattr(model[0].weight, mark, 0)
    with pytest.raises(StiffnessError, match=r"whole on each process.*DeepSpeed"):
        GramEngine(model, cross_entropy).gram(batch())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_in_processes(processes, tmp_path):
    """Each process checks itself: see the script."""
    in_processes(main, folder=tmp_path, count=processes)
    for rank in range(processes):
        assert (tmp_path / f"printed{rank}.txt").read_text().count("right") == len(CASES)
