"""The worker: claim events, fetch their sessions, run handlers, settle.

To read in the order in which an event passes them:

supervisor.py      the parent process: starts the children, restarts those that die
rq_worker.py       waits for a wake-up in RQ's queue
pool.py            threads, each of which runs one event at a time
claiming.py        claims events, in one step with the removal of their wake-ups
jobs.py            all steps of one event
fetching.py        what is asked of Stripe for it, with which key
verification.py    the fetched session: outcome, freshness, personal values
dispatch.py        runs its handlers one after another (own_process.py: in another process)
ending.py          settles the event, or releases it (hooks.py: calls `on_dead`)
summary.py         the log line of a settled event
heartbeat.py       beside them: renews claims, enforces timeouts
in_hand.py, beat.py, stop.py    what the parent and the platform see of a process, and how it stops

Stripe: stripe_api.py, on http.py; failures.py says what each failure means.
Handlers: plugins.py finds plugins, collecting.py their functions, router.py who gets which event;
held.py, import_faults.py and unimported.py say what is wrong with one.
Missed events: periodic.py, reconcile.py.
Commands (__main__.py): api_commands.py, doctor.py, endpoints.py, new_handler.py, single_run.py,
exits.py.
"""

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
