"""What every house uses."""

from __future__ import annotations

from hypothesis import settings

# The machine may be busy: a slow example is no fault.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
