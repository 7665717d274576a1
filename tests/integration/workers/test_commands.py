"""The commands, as processes but for wrong usage: what they print and how they exit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner

from identity_webhooks.event import Event
from service import arguments
from service.__main__ import main as service_main
from service.inbox import Inbox
from tests.conftest import ROOT
from tests.integration.workers.fake_stripe import KEY, Answer, Fault
from tests.logs import configuration_undone
from workers.__main__ import main as workers_main

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(
    module: str, *arguments: str, env: dict[str, str], says: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `python -m <module> ...`, and answer what it asks.

    Not kept as a process's log: answers hold personal data.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=kept | env,
        input=says,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestStripe:
    """`python -m workers sessions|reports`."""

    @pytest.fixture
    def workers(self, sandbox) -> Run:
        def workers(
            *arguments: str, says: str = "", **env: str
        ) -> subprocess.CompletedProcess[str]:
            given = {"STRIPE_API_KEY": "sk_test_workers", "STRIPE_API_BASE": sandbox.url}
            return run("workers", *arguments, env=given | env, says=says)

        return workers

    @pytest.fixture
    def ask(self, workers) -> Callable[..., Any]:
        def ask(*arguments: str) -> Any:
            done = workers(*arguments)
            assert (done.returncode, done.stderr) == (0, "")
            return json.loads(done.stdout)

        return ask

    def test_from_create_to_redact(self, ask, sandbox, canary) -> None:
        session = ask(
            *("sessions", "create", "--type", "document", "--reference", "u-1"),
            *("--metadata", "a=1", "--metadata", "b=x=y", "--return-url", "https://example.com/"),
        )
        id_ = session["id"]
        assert session["client_reference_id"] == "u-1"
        assert session["metadata"] == {"a": "1", "b": "x=y"}
        updated = ask("sessions", "update", id_, "--metadata", "a=", "--type", "id_number")
        assert (updated["metadata"], updated["type"]) == ({"b": "x=y"}, "id_number")
        sandbox.control(f"sessions/{id_}/submit", outcome="verified")
        shown = ask("sessions", "retrieve", id_, "--expand", "last_verification_report")
        report = shown["last_verification_report"]
        assert canary in report["id_number"]["first_name"]
        assert ask("reports", "retrieve", report["id"])["verification_session"] == id_
        listed = ask("reports", "list", "--session", id_, "--limit", "1")
        assert [each["id"] for each in listed["data"]] == [report["id"]]
        assert ask("sessions", "redact", id_, "--yes")["redaction"]["status"] == "processing"

    def test_cancel_and_a_connected_account(self, ask, sandbox) -> None:
        account = "acct_1Commands"
        session = sandbox.session(account=account)
        canceled = ask("sessions", "cancel", session.id, "--account", account)
        assert canceled["status"] == "canceled"
        listed = ask("sessions", "list", "--status", "canceled", "--account", account)
        assert [each["id"] for each in listed["data"]] == [session.id]

    EACH: ClassVar = {
        "create": "sessions create",
        "retrieve": "sessions retrieve {session}",
        "list": "sessions list --limit 100",
        "update": "sessions update {session} --metadata a=1",
        "cancel": "sessions cancel {session}",
        "redact": "sessions redact {session} --yes",
        "report": "reports retrieve {report}",
        "reports": "reports list --limit 100",
    }

    @pytest.mark.sample(8)
    @pytest.mark.parametrize(("account", "other"), [(None, "acct_1Each"), ("acct_1Each", None)])
    @pytest.mark.parametrize("words", EACH.values(), ids=EACH)
    def test_each_asks_in_the_account_that_is_named(self, words, account, other, sandbox) -> None:
        def ask(about: dict[str, str], account: str | None) -> Any:
            env = {"STRIPE_API_KEY": "sk_test_workers", "STRIPE_API_BASE": sandbox.url}
            where = ["--account", account] if account else []
            line = [*words.format(**about).split(), *where]
            done = CliRunner(env=env).invoke(workers_main, line)
            return json.loads(done.stdout) if done.exit_code == 0 else done.stderr

        def made(account: str | None) -> dict[str, str]:
            verified = sandbox.session("verified", account=account).id
            report = sandbox.api().retrieve_session(verified, account=account)
            return {
                "session": sandbox.session(account=account).id,
                "report": str(report.last_verification_report),
            }

        there, elsewhere = made(account), made(other)
        if "{" in words:
            assert "missing 404" in ask(elsewhere, account)
            assert ask(there, account)["id"] in there.values()
            return
        found = ask(there, account)
        if "list" in words:
            listed = {each["id"] for each in found["data"]}
            assert listed & {*there.values()}
            assert not listed & {*elsewhere.values()}
        else:
            assert sandbox.api().retrieve_session(found["id"], account=account).id == found["id"]

    def test_since_is_utc_wherever_one_is(self, workers, sandbox) -> None:
        account = "acct_1Clock"
        session = sandbox.session(account=account)
        now = time.time()

        def listed(seconds: float) -> subprocess.CompletedProcess[str]:
            since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now + seconds))
            asked = ("sessions", "list", "--since", since, "--account", account)
            return workers(*asked, TZ="Asia/Tokyo")

        assert [each["id"] for each in json.loads(listed(-60).stdout)["data"]] == [session.id]
        assert listed(600).returncode == 2, "that is still to come"

    @pytest.mark.parametrize("says", ["", "\n", "n\n", "no\n", "y\n"], ids=repr)
    def test_redaction_asks_first(self, workers, sandbox, says) -> None:
        session = sandbox.session("verified")
        done = workers("sessions", "redact", session.id, says=says)
        agreed = says == "y\n"
        assert done.returncode == (0 if agreed else 1)
        assert "This cannot be undone. [y/N]" in done.stdout
        assert (sandbox.api().retrieve_session(session.id).redaction is not None) == agreed

    def test_what_stripe_refuses(self, workers) -> None:
        done = workers("sessions", "retrieve", "vs_nowhere")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Stripe: missing 404 resource_missing (req_")

    @pytest.mark.parametrize(("action", "right"), [("create", "write"), ("check", "read")])
    def test_what_it_refuses_of_endpoints_says_what_was_asked(
        self, action, right, workers, sandbox
    ) -> None:
        sandbox.fault("error", status=400, route="/v1/webhook_endpoints")
        to = ["https://acme.example/webhooks/stripe"] if action == "create" else []
        done = workers("endpoint", action, *to)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert f"Stripe, asked to {right} webhook endpoints: invalid 400 (req_" in said

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("sessions", "create", "--metadata", "novalue"), "should be KEY=VALUE"),
            (("sessions", "list", "--limit", "101"), "101 is not in the range 1<=x<=100"),
            (("sessions", "list", "--status", "lost"), "'lost' is not one of"),
            (("reports", "list", "--since", "yesterday"), "'yesterday' is no moment, such as 2h"),
            (("sessions", "retrieve"), "Missing argument 'SESSION'"),
            (("reconcile", "--since", "9999-12-31"), "since is still to come"),
            (("reports", "list", "--since", "9999-12-31"), "since is still to come"),
            (("sessions", "list", "--since", "2h", "--until", "3h"), "until is not after since"),
            (
                ("reconcile", "--as-done", "--since", "2025-11-02", "--until", "2025-11-01"),
                "until is not after since",
            ),
            (("endpoint", "create", "https://[x/webhooks/stripe"), "is no URL: Invalid IPv6"),
        ],
        ids=[
            *("metadata", "limit", "status", "since", "nothing", "future", "future of reports"),
            *("order of sessions", "order", "url"),
        ],
    )
    def test_wrong_usage(self, arguments, words) -> None:
        done = CliRunner().invoke(workers_main, arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in done.stderr

    def test_without_a_key(self, workers) -> None:
        done = workers("sessions", "list", STRIPE_API_KEY="")
        assert done.returncode == 78
        assert "STRIPE_API_KEY: missing" in done.stderr


class TestReconcile:
    """`python -m workers reconcile`."""

    @pytest.fixture
    def reconcile(self, server, redis, fake) -> Run:
        def reconcile(*arguments: str) -> subprocess.CompletedProcess[str]:
            env = {
                "REDIS_URL": server.url,
                "STRIPE_API_KEY": KEY,
                "STRIPE_API_BASE": fake.url,
                "STRIPE_CONNECTED_ACCOUNTS": "1",
            }
            return run("workers", "reconcile", *arguments, env=env)

        return reconcile

    def test_an_account_that_stripe_does_not_know_is_a_mistake_if_one_named_it(
        self, reconcile, fake
    ) -> None:
        fake.accounts = ["acct_1", "acct_2"]
        for number, account in enumerate(fake.accounts):
            fake.session(number, account)
        fake.fault = Fault("list", KEY, "acct_1", Answer(403, "account_invalid"))

        done = reconcile("--account", "acct_1")
        assert done.returncode == 1
        assert "nothing of the account acct_1: it is mistyped, or not connected" in done.stderr
        done = reconcile("--account", "acct_1", "--json")
        assert (done.returncode, json.loads(done.stdout)["gone"]) == (1, ["acct_1"])

        done = reconcile()
        assert done.returncode == 0, "who has left is no mistake of anybody's"
        assert done.stdout.splitlines() == [
            "2 events looked at, 2 missed and taken in",
            "  acct_2-evt_created1",
            "  acct_2-evt_verified1",
            "Stripe shows nothing of the account acct_1 any more",
        ]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--as-done",), "--as-done needs --since"),
            (("--until", "2026-01-01"), "--until goes with --as-done"),
            (("--since", "2026-01-01", "--deep"), "give --since or --deep"),
        ],
    )
    def test_wrong_usage(self, arguments, words) -> None:
        done = CliRunner().invoke(workers_main, ["reconcile", *arguments])
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "seconds", "taken"),
        [
            ((), 3 * 86_400, True),
            (("--deep",), 30 * 86_400, True),
            (("--since", "2h"), 7_200, True),
            (("--dry-run",), 3 * 86_400, False),
            (("--dry-run", "--deep", "--as-done"), 30 * 86_400, False),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
    )
    def test_how_far_back_it_asks_and_whether_it_takes_in(
        self, arguments, seconds, taken, fake, server, redis
    ) -> None:
        fake.session(1)
        env = {"REDIS_URL": server.url, "STRIPE_API_KEY": KEY, "STRIPE_API_BASE": fake.url}
        with configuration_undone():
            done = CliRunner(env=env).invoke(workers_main, ["reconcile", *arguments])
        assert done.exit_code == 0, done.stderr
        assert time.time() - fake.since[0] == pytest.approx(seconds, abs=120)
        assert f"2 missed and {'taken in' if taken else 'would be taken in'}" in done.stdout
        assert [bool(Inbox(redis).find(f"evt_{kind}1")) for kind in ("created", "verified")] == [
            taken
        ] * 2
        assert not redis.exists("iw:audit")

    @pytest.mark.parametrize("form", ["text", "json"])
    @pytest.mark.parametrize("stripe", ["answers", "fails"])
    def test_what_it_found_is_said_in_either_form(self, form, stripe, fake, server, redis) -> None:
        fake.session(1)
        plain = fake.answer
        stuck = fake.sessions["vs_1"] | {"id": "vs_stuck", "created": 1, "status": "processing"}

        def answering(path: str, query: Any, key: str, account: str) -> Any:
            if query.get("status") == ["processing"]:
                return {"object": "list", "url": path, "has_more": False, "data": [stuck]}
            return plain(path, query, key, account)

        fake.answer = answering
        if stripe == "fails":
            fake.fault = Fault("list", KEY, "/v1/events", Answer(403))
        env = {"REDIS_URL": server.url, "STRIPE_API_KEY": KEY, "STRIPE_API_BASE": fake.url}
        with configuration_undone():
            options = ["--json"] if form == "json" else []
            done = CliRunner(env=env).invoke(workers_main, ["reconcile", *options])
        answers = stripe == "answers"
        assert done.exit_code == (0 if answers else 1)
        missed = ["evt_created1", "evt_verified1"] if answers else []
        reason = "list: forbidden 403 (req_fake)"
        if form == "json":
            assert json.loads(done.stdout) == {
                "seen": len(missed),
                "counts": {"new": 2} if answers else {},
                "missed": missed,
                "stuck": ["vs_stuck"] if answers else [],
                "gone": [],
                "failed": {} if answers else {"own": reason},
                "failed_in_a_row": 0,
            }
            return
        assert done.stdout.splitlines() == [
            f"{len(missed)} events looked at, {len(missed)} missed and taken in",
            *(f"  {key}" for key in missed),
            *(["in processing for more than a day: vs_stuck"] if answers else []),
        ]
        assert (f"Stripe, asked for own: {reason}" in done.stderr) != answers

    def test_of_a_full_inbox_it_is_said_what_was_taken_in_before(self, fake, server, redis) -> None:
        fake.session(1)
        env = {"REDIS_URL": server.url, "STRIPE_API_KEY": KEY, "STRIPE_API_BASE": fake.url}
        with configuration_undone():
            done = CliRunner(env=env | {"INBOX_LIMIT": "1"}).invoke(workers_main, ["reconcile"])
        assert (done.exit_code, done.stdout) == (1, "")
        first, *others = done.stderr.splitlines()
        assert "the inbox is at its limit" in first
        assert others == ["missed and taken in before: evt_created1"]

    def test_as_done_is_said_and_written_down(self, reconcile, fake, redis) -> None:
        fake.accounts = ["acct_2"]
        fake.session(1, "acct_2")
        done = reconcile("--as-done", "--deep", "--as", "ann", "--account", "acct_2")
        assert done.returncode == 0
        assert "2 events looked at, 2 missed and taken in as done" in done.stdout
        entry = json.loads(redis.lindex("iw:audit", 0))
        assert (entry["action"], entry["by"]) == ("as-done", "ann")


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command of a program, with the words that lead to it."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, *path, name)
    else:
        yield path, command


NO_NAMES = {
    "--account": ["acct", "1NvJ0c", "acct_1 ", "acct_\u0661", "acct_1-evt_1", "acct_1/2", ""],
    "session": ["vs", "1Pq2Kd", "evt_1", "vs_1/redact", "vs_*", " vs_1", ""],
    "--session": ["vs", "vr_1", "VS_1", ""],
    "report": ["vr", "vs_1", "vr_1?expand=x", ""],
    "thing": ["evt", "vs", "evt_1,evt_2", "acct_1/evt_1", "*", ""],
    "--to": ["audit", "a b.c"],
    "--reason": ["*", "a|b", "x" * 70, ""],
    "--as": ["a b", "ann@example.com", "x" * 33, ""],
    "keys": ["evt", "vs_1", "evt_1,evt_2", "acct_1/evt_1", "*", ""],
    "--handler": ["audit", "audit.", ".log", "a b.c", "a|b.c", ""],
}
"""By what names one thing: what cannot be such a name."""
MALFORMED = [
    pytest.param(program, path, command, param, value, id=f"{' '.join(path)} {name} {value!r}")
    for program in (workers_main, service_main)
    for path, command in commands(program)
    for param in command.params
    for name in param.opts
    for value in NO_NAMES.get(name, ())
]


class TestNames:
    """Accounts, sessions, reports, events and handlers are looked at before anything is asked."""

    @pytest.mark.sample(90)
    @pytest.mark.parametrize(("program", "path", "command", "param", "value"), MALFORMED)
    def test_what_cannot_be_one_is_wrong_usage(
        self, program, path, command, param, value, server
    ) -> None:
        words = list(path)
        for each in command.params:
            if each is param or (each.required and isinstance(each.type, arguments.Id)):
                given = value if each is param else each.type.example.split()[0]
                words += [each.opts[0], given] if each.opts[0].startswith("-") else [given]
        done = CliRunner(env={"REDIS_URL": server.url}).invoke(program, words)
        assert (done.exit_code, done.stdout) == (2, ""), done.stderr
        assert f"{value!r} is not the name of a {param.type.name}" in done.stderr

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (arguments.ACCOUNT, "acct_1NvJ0c"),
            (arguments.ACCOUNT, "acct_platform/acct_below"),
            (arguments.SESSION, "vs_1Pq2Kd"),
            (arguments.REPORT, "vr_1Pq2Kd"),
            (arguments.EVENT, "evt_test_65R"),
            (arguments.EVENT, "acct_1-evt_reconciled_vs_1_verified"),
            (arguments.EVENT, Event("evt_1", "created", "thin", "vs_1", 0, False, "org_1/a").key),
            (arguments.EVENT_OR_SESSION, "acct_1-evt_1"),
            (arguments.EVENT_OR_SESSION, "vs_1Pq2Kd"),
            (arguments.REASON, "failed KeyError"),
            (arguments.PERSON, "ann.b-c_1"),
            (arguments.HANDLER, "audit.log_event"),
            (arguments.HANDLER, "acme-identity.plugin.grant"),
        ],
    )
    def test_what_is_one_is_taken(self, kind, name) -> None:
        assert kind.convert(name, None, None) == name

    def test_there_are_no_others(self) -> None:
        """What takes any text takes free text, or what Stripe refuses, or looks at it by itself."""
        free = {"--reference", "--return-url", "--metadata", "--expand", "name", "url"}
        free |= {"--option", "--provided-detail", "--related-person", "--verification-flow"}
        free |= {"--related-customer", "--related-customer-account", "--after", "--before"}
        assert free == {
            name
            for program in (workers_main, service_main)
            for _, command in commands(program)
            for param in command.params
            if param.type is click.STRING
            for name in param.opts
        }
