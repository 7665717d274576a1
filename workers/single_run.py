"""Run one handler for one session, from a shell: `python -m workers run`.

Nothing is read from or written to Redis. The handler gets the session as Stripe has it now.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from identity_webhooks.answers import told
from identity_webhooks.event import Event
from identity_webhooks.handlers import Discard, Retry
from identity_webhooks.verification import Outcome, Verification
from service import logs
from service.inbox import Progress
from service.settings import Settings
from workers.hooks import Hooks
from workers.router import Failed, Handler, Router, place
from workers.stripe_api import StripeApi
from workers.verification import Facts, event_kind


@dataclass(frozen=True)
class RunResult:
    """How a single run ended.

    Attributes:
        status: `done`, `retry` or `dead`; `skipped`: a worker would not run it for this session;
            `ready`: it would be run, and was not (a dry run).
        kind: the event that tells of the session's state.
        outcome: in the words that handlers get.
        reason: the code of `last_error`, if any.
        subject: whom it concerns.
        text: what the handler raised, or why it was skipped; personal values are masked.
        delay: the seconds it asked to wait.
        took_ms: how long the handler ran.
    """

    status: Literal["done", "retry", "dead", "skipped", "ready"]
    kind: str
    outcome: str
    reason: str | None
    subject: str | None
    text: str = ""
    delay: float | None = None
    took_ms: int = 0


def in_words(result: RunResult, handler: str) -> str:
    """Return the result in a sentence or two."""
    ended = {
        "done": f"done in {result.took_ms} ms",
        "retry": f"failed, and would be run again: {result.text}",
        "dead": f"failed for good: {result.text}",
        "skipped": f"would not be run: {result.text}",
        "ready": "would be run",
    }
    reason = f" ({result.reason})" if result.reason else ""
    wait = f"\nIt asked to wait {result.delay:g} s." if result.delay is not None else ""
    subject = result.subject or "nobody (no client_reference_id)"
    return (
        f"The session is {result.outcome}{reason} and concerns {subject}.\n"
        f"{handler}: {ended[result.status]}{wait}"
    )


def run(
    settings: Settings,
    router: Router,
    handler: Handler,
    session: str,
    *,
    account: str | None = None,
    dry_run: bool = False,
) -> RunResult:
    """Run the handler with a key of its own: an effect of a worker's run happens again.

    Raises:
        StripeFailure: Stripe cannot be asked, or refuses.
    """
    api = StripeApi.from_settings(settings)
    asked = Event("evt_single_run", "created", "snapshot", session, 0, False, account)
    fetched, report = api.fetch(asked)
    outcome = Outcome.of(fetched)
    event = replace(
        asked,
        kind=event_kind(outcome.kind),
        created=fetched.created,
        livemode=fetched.livemode,
    )
    facts = Facts(fetched, report, outcome, superseded=False)
    restricted = settings.stripe_restricted_key
    if handler.needs and restricted:
        key = restricted.get_secret_value()
        facts.sensitive = StripeApi(key, base=settings.stripe_api_base).fetch_sensitive(
            event, handler.needs
        )
    verification = Verification(
        event=event,
        session=fetched,
        report=report,
        outcome=outcome,
        sensitive=facts.sensitive.only(handler.needs),
        idempotency_key=f"run-{session}:{handler.name}",
        attempt=1,
        superseded=False,
        log=handler.log(event, 1),
        last_attempt=handler.is_last(Progress("retry", 0), 0),
    )
    with logs.masking(facts.personal_values()):
        status, text, delay, took = _call(handler, verification, router, dry_run=dry_run)
        subject = logs.redact(verification.subject) if verification.subject else None
    return RunResult(status, event.kind, outcome.kind, outcome.reason, subject, text, delay, took)


Call = tuple[Literal["done", "retry", "dead", "skipped", "ready"], str, float | None, int]


def _call(  # noqa: PLR0911 (one end each)
    handler: Handler, v: Verification, router: Router, *, dry_run: bool
) -> Call:
    if v.event.kind not in handler.events:
        return "skipped", f"it does not subscribe to {v.event.kind}", None, 0
    if handler.reasons and v.outcome.reason not in handler.reasons:
        return "skipped", f"{v.outcome.reason} is none of its reasons", None, 0
    if dry_run:
        return "ready", "", None, 0
    hooks = Hooks(router, {handler.plugin})
    hooks.start()
    started = time.monotonic()

    def took() -> int:
        return round((time.monotonic() - started) * 1000)

    try:
        handler.run(v)
    except Retry as retry:
        text, delay = told(retry)
        return "retry", logs.quote(text), delay, took()
    except Discard as discard:
        return "dead", logs.quote(told(discard)[0]), None, took()
    except Failed as failed:
        return "retry", failed.reason, None, took()
    except BaseException as error:  # noqa: BLE001 (sys.exit is the handler's failure)
        return "retry", f"{place(error)}: {logs.quote(error)}", None, took()
    else:
        return "done", "", None, took()
    finally:
        hooks.stop()
