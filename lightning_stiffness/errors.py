"""What goes wrong in a way that the user can mend."""


class StiffnessError(ValueError):
    """A requirement on the user's model, data or settings is not met; the message says which and what to do."""


class MixedSamplesError(StiffnessError):
    """The loss of one sample depends on other samples of the batch, so that per-sample gradients do not exist."""
