import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and types written in the signatures are checked here, and only here: users do not pay for it.
install_import_hook(["lightning_stiffness.functional", "lightning_stiffness.gram"], "beartype.beartype")

# No deadline, since the first call into torch is slow; each run tries other examples.
hypothesis.settings.register_profile("project", max_examples=40, deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
