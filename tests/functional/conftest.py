"""Properties are tested without a time limit: the first example of a run pays for what torch sets up."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
