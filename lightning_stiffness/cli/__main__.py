"""`python -m lightning_stiffness.cli` is the command `lightning-stiffness`."""

import sys

from lightning_stiffness.cli import main

sys.exit(main())
