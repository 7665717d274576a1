"""Which files are mutated, and which suites are to notice where no test runs the line itself."""

_INBOX = "tests/integration/inbox"
_WORKERS = "tests/integration/workers"

_SCRIPTS = (
    f"{_INBOX}/test_inbox.py {_INBOX}/test_limits.py {_INBOX}/test_twins.py"
    f" {_INBOX}/test_accounts.py {_INBOX}/test_by_hand.py {_INBOX}/test_rq_contract.py",
    f"{_INBOX}/test_clock.py {_INBOX}/test_connections.py {_INBOX}/test_model.py",
    f"{_INBOX}/test_lost_replies.py {_WORKERS}/test_round_trips.py",
    f"{_WORKERS} tests/integration/service",
)
# What no test runs in its own process is mostly seen by tests of processes.
_WORK = (
    "tests/unit/workers",
    f"{_WORKERS}/test_commands.py {_WORKERS}/test_doctor.py",
    "tests/e2e/workers",
    _WORKERS,
)
_RECEIVE = (
    "tests/e2e/receiver/test_answers.py tests/e2e/receiver/test_trouble.py"
    " tests/e2e/receiver/test_hostile.py tests/e2e/receiver/test_boot.py",
    "tests/unit/service",
    "tests/integration/server tests/integration/service",
    "tests/e2e/receiver",
)

TARGETS: dict[str, tuple[str, ...]] = {
    "service/inbox/lua/*.lua": _SCRIPTS,
    "service/inbox/[!_]*.py": ("tests/unit/service", *_SCRIPTS),
    "service/repair.py": ("tests/integration/service/test_event_commands.py",),
    "service/signature.py": _RECEIVE,
    "service/event.py": _RECEIVE,
    "service/receiver.py": _RECEIVE,
    "service/connection.py": (*_RECEIVE[:3], _INBOX),
    "service/server/*.py": _RECEIVE,
    "workers/jobs.py": _WORK,
    "workers/fetching.py": _WORK,
    "workers/dispatch.py": _WORK,
    "workers/ending.py": _WORK,
    "workers/failures.py": _WORK,
    "workers/reconcile.py": _WORK,
    "workers/stripe_api.py": _WORK,
}
"""Patterns of files, and their suites: arguments of pytest, run in turn until one fails."""
