import logging
import os

import hypothesis
import pytest
import torch
from hypothesis.internal.conjecture import providers
from jaxtyping import install_import_hook

# Shapes and types written in the signatures are checked here, and only here: users do not pay for it.
install_import_hook(["lightning_stiffness.functional", "lightning_stiffness.gram"], "beartype.beartype")

# No deadline, since the first call into torch is slow. Each run tries other examples; but CI tries the same ones each
# time, so that what it refuses is the change's own fault, and can be repeated.
hypothesis.settings.register_profile(
    "project",
    max_examples=40,
    deadline=None,
    print_blob=True,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a busy machine
)
hypothesis.settings.load_profile("project")
if "CI" in os.environ:  # else they depend on every number in the modules that were imported before
    providers.is_local_module_file = lambda path: False


@pytest.fixture(autouse=True)
def _lightning_speaks():
    """Benchmarks silence it for the whole process."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
