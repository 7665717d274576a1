"""Acts: claim, fetch, dispatch, settle."""

import warnings
from typing import TYPE_CHECKING

import identity_webhooks

# Handler authors imported these from here. It works for one more release, with a warning.
__all__ = ["Discard", "Outcome", "Retry", "Sensitive", "Verification", "on"]

if TYPE_CHECKING:
    from identity_webhooks import Discard, Outcome, Retry, Sensitive, Verification, on

else:  # a type checker would take any name for one that `__getattr__` knows

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"{name} has moved: write `from identity_webhooks import {name}`",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(identity_webhooks, name)
