"""`workers.stripe_api` against the sandbox: every operation, on any account."""

from __future__ import annotations

import re
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, get_args
from urllib.parse import quote

import pytest
import requests

from identity_webhooks.event import Event, Form
from service.metrics import Metrics
from tests.conftest import free_port
from tests.integration.workers.conftest import DRIPS, KEY, PATIENCE
from tests.integration.workers.fake_stripe import Answer, Fault
from workers import http, stripe_api
from workers.failures import StripeFailure
from workers.stripe_api import StripeApi, WebhookEndpoint

CONNECTED, NESTED = "acct_1Connected", "acct_1Parent/acct_1Child"
ACCOUNTS = pytest.mark.parametrize(
    "account", [None, CONNECTED, NESTED], ids=["own", "connected", "nested"]
)


def refused(call: Any) -> StripeFailure:
    with pytest.raises(StripeFailure) as caught:
        call()
    return caught.value


def ids(page: Any) -> list[str]:
    return [each.id for each in page.data]


@pytest.mark.parametrize("what", [*DRIPS])
def test_an_answer_has_one_limit_however_slowly_it_comes(what, drip, monkeypatch) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.5)
    monkeypatch.setattr(stripe_api, "NETWORK_RETRIES", 0)
    api = StripeApi("sk_test_workers", base=f"http://127.0.0.1:{drip(*DRIPS[what])}", retries=0)
    began = time.monotonic()
    failure = refused(lambda: api.retrieve_session("vs_1"))
    assert failure.status is None, failure
    assert 0.4 < time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("what", ["the status", "the headers"])
def test_so_has_that_of_a_proxy(what, drip, monkeypatch) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.5)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{drip(*DRIPS[what])}")
    api = StripeApi("sk_test_workers", base="https://stripe.test", retries=0)
    began = time.monotonic()
    refused(lambda: api.retrieve_session("vs_1"))
    assert 0.4 < time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("password", ["p", "p@q", "p/q", "p:q", "p%40q", "p+q", "p q", "é", "€"])
def test_what_is_escaped_in_the_url_of_a_proxy_is_sent_as_it_is(password, monkeypatch) -> None:
    """As curl does it: the bytes that are written there, in UTF-8."""
    heads = []

    def refuse() -> None:
        with closing(server.accept()[0]) as connection:
            heads.append(connection.recv(65_536))
            connection.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        thread = threading.Thread(target=refuse)
        thread.start()
        there = f"127.0.0.1:{server.getsockname()[1]}"
        user = f"{quote('us@er', safe='')}:{quote(password, safe='')}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{user}@{there}")
        monkeypatch.setattr(stripe_api, "NETWORK_RETRIES", 0)
        api = StripeApi("sk_test_workers", base="https://stripe.test", retries=0)
        failure = refused(lambda: api.retrieve_session("vs_1"))
        thread.join()
    assert str(failure) == "unreachable PROXY_407"
    sent = re.search(rb"Proxy-Authorization: Basic (\S+)", heads[0], re.IGNORECASE)
    assert sent
    assert b64decode(sent[1]).decode() == f"us@er:{password}"


def test_the_limit_of_one_answer_is_not_that_of_the_next_request(sandbox, monkeypatch) -> None:
    """On a connection that is kept."""
    limits = []
    send = socket.socket.sendall

    def sendall(sock: socket.socket, *rest: Any) -> None:
        limits.append(sock.gettimeout())
        send(sock, *rest)

    monkeypatch.setattr(socket.socket, "sendall", sendall)
    api, session = sandbox.api(), sandbox.session()
    limits.clear()
    for _ in range(3):
        api.retrieve_session(session.id)
    assert len(limits) >= 3
    assert all(limit in {http.CONNECT_TIMEOUT, http.READ_TIMEOUT} for limit in limits)


@ACCOUNTS
def test_the_eight_operations(account, sandbox, canary) -> None:
    api = sandbox.api()
    session = api.create_session(
        {"type": "document", "client_reference_id": "u-1", "metadata": {"a": "1"}}, account=account
    )
    assert (session.status, session.client_reference_id) == ("requires_input", "u-1")
    updated = api.update_session(session.id, {"metadata": {"b": "2"}}, account=account)
    assert updated.metadata.to_dict() == {"a": "1", "b": "2"}

    sandbox.control(f"sessions/{session.id}/submit", outcome="verified")
    plain = api.retrieve_session(session.id, account=account)
    assert (plain.status, isinstance(plain.last_verification_report, str)) == ("verified", True)
    report_id = plain.last_verification_report
    expanded = api.retrieve_session(
        session.id, expand=["last_verification_report", "verified_outputs"], account=account
    )
    assert expanded.last_verification_report.id == report_id
    assert canary in expanded.verified_outputs.first_name

    report = api.retrieve_report(report_id, account=account)
    assert (report.verification_session, report.document.status) == (session.id, "verified")
    assert not hasattr(report.document, "number")
    restricted = sandbox.api("rk_test_x")
    number = restricted.retrieve_report(report_id, expand=["document.number"], account=account)
    assert canary in number.document.number
    reports = api.list_reports({"verification_session": session.id}, account=account)
    assert ids(reports) == [report_id]

    other = api.create_session({"type": "id_number"}, account=account)
    assert ids(api.list_sessions({"limit": 2}, account=account)) == [other.id, session.id]
    assert session.id in ids(api.list_sessions({"status": "verified"}, account=account))
    more = ["last_verification_report"]
    canceled = api.cancel_session(other.id, expand=["verified_outputs"], account=account)
    assert (canceled.status, canceled.verified_outputs) == ("canceled", None)
    redacted = api.redact_session(session.id, expand=more, account=account)
    assert redacted.redaction.status == "processing"
    assert redacted.last_verification_report.id == report_id


def test_accounts_do_not_see_each_other(sandbox) -> None:
    api = sandbox.api()
    session = sandbox.session("verified", account=CONNECTED)
    for account in (None, "acct_1Other"):
        failure = refused(lambda account=account: api.retrieve_session(session.id, account=account))
        assert (failure.kind, failure.code) == ("missing", "resource_missing")
        assert session.id not in ids(api.list_sessions({"limit": 100}, account=account))
        assert ids(api.list_reports({"verification_session": session.id}, account=account)) == []


def test_what_stripe_refuses(sandbox) -> None:
    api = sandbox.api()
    session = sandbox.session("verified")
    refusals = {
        "type": lambda: api.create_session({}),
        "done": lambda: api.cancel_session(session.id),
        "expand": lambda: api.retrieve_session(session.id, expand=["shoe_size"]),
        "sensitive": lambda: api.retrieve_session(session.id, expand=["verified_outputs.dob"]),
        "key": lambda: sandbox.api("sk_live_x").list_sessions(),
        "report": lambda: api.retrieve_report("vr_nowhere"),
        "event": lambda: api.retrieve_event("evt_nowhere"),
        "thin event": lambda: api.retrieve_thin_event("evt_nowhere"),
    }
    kinds = {name: (failure := refused(call)).kind for name, call in refusals.items()}
    assert kinds == {
        **dict.fromkeys(["type", "done", "expand"], "invalid"),
        "sensitive": "forbidden",
        "key": "key",
        **dict.fromkeys(["report", "event", "thin event"], "missing"),
    }
    assert failure.request_id.startswith("req_")


class TestFetch:
    def event(self, session: str, account: str | None) -> Event:
        return Event("evt_1", "verified", "thin", session, 0, livemode=False, account=account)

    @ACCOUNTS
    def test_session_and_report_in_one_call(self, account, sandbox) -> None:
        session = sandbox.session("document_expired", account=account)
        found, report = sandbox.api().fetch(self.event(session.id, account))
        assert (found.id, found.last_error.code) == (session.id, "document_expired")
        assert report.verification_session == session.id
        assert report.document.error.code == "document_expired"

    def test_before_an_attempt_there_is_no_report(self, sandbox) -> None:
        _, report = sandbox.api().fetch(self.event(sandbox.session().id, None))
        assert report is None

    @ACCOUNTS
    def test_sensitive_fields(self, account, sandbox, canary) -> None:
        event = self.event(sandbox.session("verified", account=account).id, account)
        found = sandbox.api("rk_test_x").fetch_sensitive(event, stripe_api.SENSITIVE)
        values = dict(zip(sorted(stripe_api.SENSITIVE), found.values(), strict=True))
        assert canary in values["last_verification_report.document.number"]
        assert str(values["verified_outputs.dob"]) == "1990-07-17"
        assert str(values["last_verification_report.document.expiration_date"]) == "2035-12-01"
        assert canary in values["verified_outputs.unparsed_place_of_birth"]
        assert canary in values["last_verification_report.document.unparsed_place_of_birth"]
        assert values["last_verification_report.document.sex"] is not None
        assert values["verified_outputs.id_number"] is None

    def test_of_a_redacted_session_there_is_none_and_no_placeholder(self, sandbox) -> None:
        session = sandbox.session("verified")
        sandbox.api().redact_session(session.id)
        sandbox.control(f"sessions/{session.id}/complete")
        event = self.event(session.id, None)
        found = sandbox.api("rk_test_x").fetch_sensitive(event, stripe_api.SENSITIVE)
        assert set(found.values()) == {None}
        session, report = sandbox.api().fetch(event)
        assert session.status == "verified"
        outputs = session.verified_outputs.to_dict()
        assert (outputs["first_name"], outputs["address"]["line1"]) == (None, None)
        assert outputs["address"]["country"] == "US"
        assert (report.document.first_name, report.document.type) == (None, "driving_license")


class TestEvents:
    def test_the_latest_first_page_after_page(self, sandbox) -> None:
        account = "acct_1Paged"
        before = int(time.time())
        sessions = [sandbox.session("verified", account=account) for _ in range(35)]
        events = list(sandbox.api().events_since(before, account=account))
        assert len({event.id for event in events}) == len(events) == 3 * 35
        assert {event.data.object["id"] for event in events} == {s.id for s in sessions}
        times = [event.created for event in events]
        assert times == sorted(times, reverse=True)
        assert list(sandbox.api().events_since(before + 3600, account=account)) == []

    def test_a_failure_on_a_later_page_is_a_failure_too(self, sandbox, monkeypatch) -> None:
        monkeypatch.setattr(stripe_api, "NETWORK_RETRIES", 0)
        account = "acct_1Failing"
        for _ in range(35):
            sandbox.session("verified", account=account)
        events = sandbox.api().events_since(0, account=account)
        next(events)
        sandbox.fault("error", status=502)
        assert refused(lambda: list(events)).kind == "broken"

    @ACCOUNTS
    def test_one_by_its_id_in_its_account_alone(self, account, sandbox) -> None:
        began = int(time.time())
        session, api = sandbox.session(account=account), sandbox.api()
        (event,) = [
            each
            for each in api.events_since(began, account=account)
            if each.data.object["id"] == session.id
        ]
        assert api.retrieve_event(event.id, account=account).id == event.id
        for other in {None, CONNECTED, "acct_1Other"} - {account}:
            failure = refused(lambda other=other: api.retrieve_event(event.id, account=other))
            assert failure.kind == "missing"

    def test_one_by_its_id_in_both_forms(self, sandbox) -> None:
        session, thin_id = sandbox.session_and_thin_event()
        thin = sandbox.api().retrieve_thin_event(thin_id)
        assert thin.type == "v1.identity.verification_session.created"
        snapshot = sandbox.api().retrieve_event(thin.snapshot_event)
        assert snapshot.data.object["id"] == session.id


@pytest.mark.parametrize(("retries", "calls"), [(None, 2), (0, 1), (2, 3)])
def test_how_often_a_call_is_made_again_at_once(retries, calls, fake) -> None:
    api = StripeApi("sk_test_table", base=fake.url, retries=retries)
    about = fake.session(1)
    for status, code, made in [
        (500, "", calls),
        (503, "", calls),
        (409, "", calls),
        (0, "(cut-off)", calls),
        (400, "", 1),
        (401, "", 1),
        (403, "", 1),
        (404, "", 1),
        (429, "rate_limit", 1),
    ]:
        fault = fake.fault = Fault("report", "sk_test_table", about, Answer(status, code))
        refused(lambda: api.retrieve_session(about))
        assert (status, fault.struck) == (status, made)
    plain, answers = fake.answer, [Answer(500), None]
    fake.fault = None
    fake.answer = lambda *given: answers.pop(0) or plain(*given)
    if calls > 1:
        assert api.retrieve_session(about).id == about
    else:
        assert refused(lambda: api.retrieve_session(about)).status == 500


def test_each_call_is_counted_by_what_it_asks_and_not_by_whom_it_concerns(sandbox, redis) -> None:
    metrics, began = Metrics(redis), time.monotonic()
    api = StripeApi(KEY, base=sandbox.url, metrics=metrics, retries=0)
    nowhere = StripeApi(KEY, base=f"http://127.0.0.1:{free_port()}", metrics=metrics, retries=0)
    session = api.create_session({"type": "document"}, account=CONNECTED).id
    for account in (CONNECTED, CONNECTED, None):  # one's own account has no such session
        with suppress(StripeFailure):
            api.retrieve_session(session, account=account)
    api.update_session(session, {"metadata": {"a": "1"}}, account=CONNECTED)
    api.cancel_session(session, account=CONNECTED)
    api.redact_session(session, account=CONNECTED)
    api.list_sessions({"limit": 1})
    api.list_reports({"limit": 1})
    next(api.events_since(0, account=CONNECTED))
    refused(lambda: api.retrieve_report("vr_1Nowhere"))
    refused(lambda: api.retrieve_thin_event("evt_1Nowhere"))
    refused(lambda: nowhere.retrieve_session(session))
    took = time.monotonic() - began
    metrics.end()
    sums = [
        by
        for name, by in metrics.counts().items()
        if name.startswith("stripe_seconds|") and name.endswith("|sum")
    ]
    assert 0 < sum(sums) < took, "in seconds"

    counted: dict[tuple[str, str], float] = {}
    for name, count in metrics.counts().items():
        kind, *labels, bound = name.split("|")
        if kind == "stripe_seconds" and bound != "sum":
            operation, status = labels
            counted[operation, status] = counted.get((operation, status), 0) + count
    sessions = "/v1/identity/verification_sessions"
    assert counted == {
        (f"POST {sessions}", "200"): 1,
        (f"GET {sessions}/*", "200"): 2,
        (f"GET {sessions}/*", "404"): 1,
        (f"GET {sessions}/*", "none"): 1,
        (f"POST {sessions}/*", "200"): 1,
        (f"POST {sessions}/*/cancel", "200"): 1,
        (f"POST {sessions}/*/redact", "200"): 1,
        (f"GET {sessions}", "200"): 1,
        ("GET /v1/identity/verification_reports", "200"): 1,
        ("GET /v1/identity/verification_reports/*", "404"): 1,
        ("GET /v1/events", "200"): 1,
        ("GET /v2/core/events/*", "404"): 1,
    }


LISTS: dict[str, tuple[str, Callable[[StripeApi], Iterator[Any]]]] = {
    "events": ("/v1/events", lambda api: api.events_since(7)),
    "sessions": (
        "/v1/identity/verification_sessions",
        lambda api: api.sessions_since(7, status="processing"),
    ),
    "accounts": ("/v1/accounts", lambda api: api.connected_accounts()),
    "endpoints": ("/v1/webhook_endpoints", lambda api: api.endpoints()),
    "destinations": ("/v2/core/event_destinations", lambda api: api.endpoints()),
}


NOTHING = {"object": "list", "url": "/", "has_more": False, "next_page_url": None, "data": []}


def of_an_endpoint(number: int, thin: bool, **more: Any) -> dict[str, Any]:
    """Return an endpoint as Stripe lists it, with no field at its usual value."""
    url = f"https://shop.example.com/{number}"
    given: dict[str, Any] = {
        "id": f"{'ed' if thin else 'we'}_{number}",
        "object": "v2.core.event_destination" if thin else "webhook_endpoint",
        "enabled_events": ["charge.failed"],
        "livemode": True,
        "status": "disabled",
    }
    if thin:
        return given | {"event_payload": "thin", "webhook_endpoint": {"url": url}} | more
    return given | {"url": url, "api_version": "2026-10-28.endive"} | more


@pytest.mark.parametrize(("where", "walk"), LISTS.values(), ids=LISTS)
def test_each_list_is_walked_to_its_last_page_in_pages_of_a_hundred(where, walk, fake) -> None:
    asked: list[dict[str, list[str]]] = []

    def answering(path: str, query: dict[str, list[str]], *_: str) -> Any:
        if path != where:
            return NOTHING
        asked.append(query)
        first, thin = len(asked) == 1, path.startswith("/v2")
        one = of_an_endpoint(len(asked), thin=thin)
        page = {"object": "list", "data": [one]}
        if thin:
            return page | {"next_page_url": f"{path}?page=2" if first else None}
        return page | {"url": path, "has_more": first}

    fake.answer = answering
    found = list(walk(StripeApi(KEY, base=fake.url)))
    assert len(found) == len(asked) == 2
    if where.startswith("/v1"):
        assert [query["limit"] for query in asked] == [["100"], ["100"]]
    if where == "/v1/events":
        kinds = ("created", "processing", "requires_input", "verified", "canceled", "redacted")
        for query in asked:
            types = {value for name, values in query.items() if "types" in name for value in values}
            assert types == {f"identity.verification_session.{kind}" for kind in kinds}
            assert query["created[gte]"] == ["7"]
    if "sessions" in where:
        wanted = (["7"], ["processing"])
        assert [(query["created[gte]"], query["status"]) for query in asked] == [wanted, wanted]


@pytest.mark.parametrize(("where", "walk"), LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("answer", [{}, {"object": "list", "data": None}, Answer(403)], ids=str)
def test_whichever_list_fails_it_is_a_failure_of_a_list(answer, where, walk, fake) -> None:
    def answering(path: str, *_: Any) -> Any:
        return answer if path == where else NOTHING

    fake.answer = answering
    failure = refused(lambda: list(walk(StripeApi(KEY, base=fake.url))))
    assert (failure.call, failure.kind) == (
        "list",
        "forbidden" if isinstance(answer, Answer) else "broken",
    )
    assert failure.__suppress_context__


def test_of_an_endpoint_all_is_told_that_stripe_says_of_it(fake) -> None:
    def answering(path: str, *_: Any) -> Any:
        thin = path.startswith("/v2")
        data = [of_an_endpoint(1, thin=thin)]
        if thin:
            data.append(of_an_endpoint(2, thin=True, event_payload="snapshot"))
        return {"object": "list", "url": path, "has_more": False, "data": data} | (
            {"next_page_url": None} if thin else {}
        )

    fake.answer = answering
    url, events = "https://shop.example.com/1", frozenset({"charge.failed"})
    assert list(StripeApi(KEY, base=fake.url).endpoints()) == [
        WebhookEndpoint("we_1", "snapshot", url, events, True, "disabled", "2026-10-28.endive"),
        WebhookEndpoint("ed_1", "thin", url, events, True, "disabled"),
    ]


@pytest.fixture
def connects(monkeypatch) -> list[float | None]:
    """The limits, in seconds, of the connections that are made."""
    made: list[float | None] = []
    plain = socket.socket.connect

    def connect(sock: socket.socket, *rest: Any) -> None:
        made.append(sock.gettimeout())
        plain(sock, *rest)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return made


def test_a_connection_is_made_within_three_seconds_and_kept(fake, connects) -> None:
    """Also those of several threads at once."""
    api, about = StripeApi(KEY, base=fake.url), fake.session(1)
    together, plain = threading.Barrier(5), fake.answer

    def answering(*given: Any) -> Any:
        together.wait(60)
        return plain(*given)

    fake.answer = answering
    for _ in range(2):
        threads = [threading.Thread(target=lambda: api.retrieve_session(about)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert connects == [3.0] * 5
    assert len(fake.calls) == 10


def test_what_fails_in_tls_is_not_asked_again_at_once(fake, connects) -> None:
    api = StripeApi(KEY, base=fake.url.replace("http:", "https:"), retries=2)
    assert str(refused(lambda: api.retrieve_session("vs_1"))) == "unreachable TLS"
    assert len(connects) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(status, sandbox, monkeypatch) -> None:
    asked = []

    def answer() -> None:
        with closing(server.accept()[0]) as connection:
            asked.append(connection.recv(65_536))
            there = f"Location: {sandbox.url}/v1/events\r\n".encode()
            head = f"HTTP/1.1 {status} Elsewhere\r\nContent-Length: 0\r\n".encode()
            connection.sendall(head + there + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        thread = threading.Thread(target=answer)
        thread.start()
        base = f"http://127.0.0.1:{server.getsockname()[1]}"
        failure = refused(lambda: StripeApi(KEY, base=base, retries=0).retrieve_session("vs_1"))
        thread.join()
    assert (failure.status, failure.kind, len(asked)) == (status, "broken", 1)


class TestEndpoints:
    @pytest.fixture
    def made(self, sandbox) -> Iterator[dict[tuple[str, bool], WebhookEndpoint]]:
        """An endpoint for each form of own events, and of those of connected accounts."""
        url = f"http://127.0.0.1:{free_port()}/webhooks/stripe"
        made = {
            (form, connect): sandbox.api().create_endpoint(url, form=form, connect=connect)
            for form in get_args(Form)
            for connect in (False, True)
        }
        yield made
        for (form, _), each in made.items():
            where = "v1/webhook_endpoints" if form == "snapshot" else "v2/core/event_destinations"
            there = f"{sandbox.url}/{where}/{each.id}"
            assert requests.delete(there, auth=(KEY, ""), timeout=120).status_code == 200

    def test_each_is_sent_the_events_of_its_accounts_in_its_form(self, made, sandbox) -> None:
        sessions = {False: sandbox.session(), True: sandbox.session(account=CONNECTED)}
        sent = {
            (each["session"], each["url"], each["endpoint"])
            for each in sandbox.control("deliveries", "GET")
            if each["session"] in {session.id for session in sessions.values()}
        }
        assert sent == {
            (sessions[connect].id, each.url, each.id) for (_, connect), each in made.items()
        }

    def test_each_is_listed_once_with_all_that_is_to_be_checked(self, made, sandbox) -> None:
        listed = {each.id: each for each in sandbox.api().endpoints()}
        assert len(list(sandbox.api().endpoints())) == len(listed)
        for (form, _), each in made.items():
            prefix = "v1." if form == "thin" else ""
            found = listed[each.id]
            assert (found.form, found.url, found.status) == (form, each.url, "enabled")
            assert found.events == {f"{prefix}{kind}" for kind in stripe_api.EVENT_TYPES}
            assert (found.livemode, found.secret) == (False, "")
            assert each.secret.startswith("whsec_")
        assert len({each.secret for each in made.values()}) == 4
