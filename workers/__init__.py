"""The worker: claim events, fetch their sessions, run handlers, settle."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING


def _require_our_service() -> None:
    """Refuse to go on with another package of this common name."""
    found = importlib.util.find_spec("service")
    origin = Path(found.origin or ".") if found else Path()
    if origin.parent.parent.resolve() != Path(__file__).resolve().parent.parent:
        raise ImportError(
            f"`service` is another package here ({origin}): start identity-webhooks in its own"
            " folder, and keep packages named service or workers out of PYTHONPATH"
        )


_require_our_service()

# Handler authors imported these from here. It works for one more release, with a warning.
__all__ = ["Discard", "Outcome", "Retry", "Sensitive", "Verification", "on"]

if TYPE_CHECKING:
    from identity_webhooks import Discard, Outcome, Retry, Sensitive, Verification, on

else:  # a type checker would take any name for one that `__getattr__` knows

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import warnings  # noqa: PLC0415

        import identity_webhooks  # noqa: PLC0415 (a worker that starts must soon heed SIGTERM)

        warnings.warn(
            f"{name} has moved: write `from identity_webhooks import {name}`",
            # For the operator, too: Python hides a DeprecationWarning of an imported module.
            FutureWarning,
            stacklevel=2,
        )
        return getattr(identity_webhooks, name)
