import os

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and types written in the signatures are checked here, and only here: users do not pay for it.
install_import_hook(["lightning_stiffness.functional", "lightning_stiffness.gram"], "beartype.beartype")

# No deadline, since the first call into torch is slow. Each run tries other examples; but a change is judged by the same
# ones each time, so that what CI refuses is the change's own fault, and can be repeated.
hypothesis.settings.register_profile(
    "project", max_examples=40, deadline=None, print_blob=True, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
