"""The console by Flask's client: who gets in, what each form does, and what is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from click.testing import CliRunner
from flask import Flask
from flask.testing import FlaskClient
from redis.exceptions import ConnectionError as RedisConnectionError
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.test import TestResponse

from identity_webhooks.event import Event
from service import connection, repair
from service.__main__ import main
from service.console import bulk, pages, people
from service.inbox import Claim, Filter, Inbox, Progress, keys, search
from service.processes import Process
from service.server import wsgi
from service.server.http import HttpConnection
from service.settings import Settings, SettingsError
from tests.integration.claims import claim_of

PASSWORD = "correct horse battery"
HASH = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")  # a weak one: tests make many
PEOPLE = f"ann={HASH},guest:read-only={HASH}"
PAGES = ("/", "/events", "/events/evt_1", "/sessions/vs_1", "/handlers", "/outcomes")


@pytest.fixture
def load(server, redis, monkeypatch) -> Callable[..., Settings]:
    """Read the settings from these variables alone."""

    def load(**variables: str) -> Settings:
        for name, value in {"REDIS_URL": server.url, **variables}.items():
            monkeypatch.setenv(name, value)
        return Settings.load("tool")

    return load


@pytest.fixture
def app(load) -> Callable[..., Flask]:
    def app(**variables: str) -> Flask:
        settings = load(**(variables or {"CONSOLE_PASSWORD_HASH": PEOPLE}))
        app = Flask("test", static_folder=None)
        app.register_blueprint(pages.blueprint(settings, connection.connect(settings)))
        return app

    return app


class Browser:
    """Flask's client, which fills in what a form of the page hides."""

    def __init__(self, app: Flask, **options: Any) -> None:
        self.client: FlaskClient = app.test_client()
        self.options = options

    def get(self, path: str) -> TestResponse:
        return self.client.get(f"/console{path}", **self.options)

    def post(self, path: str, on: str = "/events", **fields: str) -> TestResponse:
        """Send a form as from the page `on`."""
        proof = re.search(r'name="proof" value="(\w+)"', self.get(on).text)
        return self.send(path, proof=proof[1] if proof else "", **fields)

    def send(self, path: str, **fields: str) -> TestResponse:
        return self.client.post(f"/console{path}", data=fields, **self.options)

    def log_in(self, name: str = "ann", password: str = PASSWORD, **fields: str) -> TestResponse:
        return self.post("/login", "/login", name=name, password=password, **fields)


@pytest.fixture
def ann(app) -> Browser:
    browser = Browser(app())
    assert browser.log_in().status_code == 303
    return browser


def accept(inbox: Inbox, name: str, **changes: Any) -> str:
    fields = {"kind": "verified", "form": "snapshot", "session": "vs_1", "livemode": False}
    event = Event(f"evt_{name}", created=inbox.now(), **(fields | changes))
    inbox.accept(event)
    return event.key


def end(inbox: Inbox, key: str, outcome: str = "verified", reason: str = "") -> None:
    claim = claim_of(inbox, key)
    assert isinstance(claim, Claim)
    inbox.save_progress(claim, "p.a", Progress("done"))
    inbox.finish(claim, "done", outcome=outcome, reason=reason)


def die(
    inbox: Inbox,
    key: str,
    reason: str = "failed: KeyError at crm.py:4 save",
    handler: str = "p.b",
) -> None:
    claim = claim_of(inbox, key)
    assert isinstance(claim, Claim)
    inbox.save_progress(claim, handler, Progress("dead", 3, reason=reason))
    inbox.finish(claim, "dead", outcome="verified", reason=f"{handler}: {reason}")


ASKED = {
    "session": "vs_mine",
    "account": "acct_1",
    "handler": "p.c",
    "reason": "discarded",
    "since": "1h",
    "until": "1h",
}
"""A filter of each kind, for `mixed`."""


def mixed(inbox: Inbox, name: str) -> set[str]:
    """Have ten events die, of which every other one is like `ASKED` in this; their keys."""
    wanted = set()
    for number in range(10):
        like = number % 2 == 0
        given = {
            "session": ASKED["session"] if like and name == "session" else f"vs_{number}",
            "account": ASKED["account"] if like and name == "account" else None,
        }
        key = accept(inbox, str(number), **given)
        if like == (name == "until"):
            record = f"{keys.RECORD}{key}"
            old = int(inbox._redis.hget(record, "accepted")) - 2 * 3_600_000
            inbox._redis.hset(record, "accepted", old)
        handler = "p.c" if like and name == "handler" else "p.b"
        die(inbox, key, "discarded: no" if like and name == "reason" else "failed: X", handler)
        wanted |= {key} if like else set()
    return wanted


@pytest.fixture
def inbox(redis) -> Inbox:
    return Inbox(redis)


class TestDoor:
    @pytest.mark.parametrize("path", PAGES)
    def test_nobody_sees_a_page_without_a_login(self, app, path) -> None:
        answer = Browser(app()).get(path)
        assert answer.status_code == 303
        assert answer.location == f"/console/login?next=/console{path}"

    def test_a_login_leads_to_the_page_that_was_asked_for(self, app) -> None:
        browser = Browser(app())
        answer = browser.log_in(next="/console/events?state=dead")
        assert answer.location == "/console/events?state=dead"
        assert browser.get("/").status_code == 200

    def test_a_login_that_failed_first_still_leads_to_the_page_that_was_asked_for(
        self, app, said
    ) -> None:
        browser = Browser(app())
        page = browser.get("/events?state=dead&reason=retry")
        for password in ("wrong", PASSWORD):
            text = browser.client.get(page.location).text if page.location else page.text
            hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', text))
            fields = {name: unescape(value) for name, value in hidden.items()}
            page = browser.send("/login", name="ann", password=password, **fields)
        assert page.location == "/console/events?state=dead&reason=retry"
        assert browser.get("/login").location == "/console/"
        browser.post("/logout", "/")
        browser.log_in("password-typed-as-a-name", "x")
        assert [(line["event"], line.get("by")) for line in said()] == [
            ("console_login_refused", "ann"),
            ("console_login", "ann"),
            ("console_logout", "ann"),
            ("console_login_refused", None),
        ]

    @pytest.mark.parametrize(
        "there", ["//evil.example/", "https://evil.example", "/console", "/other", "/console/\\x"]
    )
    def test_a_login_leads_to_no_other_place(self, app, there) -> None:
        assert Browser(app()).log_in(next=there).location == "/console/"

    @pytest.mark.parametrize(("name", "password"), [("ann", "wrong"), ("bob", PASSWORD), ("", "")])
    def test_what_does_not_fit_is_refused_the_same_way(self, app, name, password) -> None:
        browser = Browser(app())
        answer = browser.log_in(name, password)
        assert answer.status_code == 403
        assert "Name and password do not fit." in answer.text
        assert browser.get("/").status_code == 303

    def test_after_ten_tries_the_right_password_has_to_wait_too(self, app, redis, said) -> None:
        browser = Browser(app())
        for _ in range(10):
            assert browser.log_in("ann", "wrong").status_code == 403
        answer = browser.log_in()
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "600")
        *refused, limited = said()
        assert [(line["event"], line["count"]) for line in refused] == [
            ("console_login_refused", tries) for tries in range(1, 11)
        ]
        assert limited == {"event": "console_login_limited", "level": "warning", "by": "ann"}
        assert 0 < redis.ttl("iw:console:failed:ann") <= 600
        assert browser.log_in("guest").status_code == 303, "of others nobody has tried"

    def test_tries_before_one_that_fitted_count_no_more(self, app) -> None:
        for _ in range(3):
            browser = Browser(app())
            for _ in range(5):
                assert browser.log_in("ann", "wrong").status_code == 403
            assert browser.log_in().status_code == 303

    def test_who_is_logged_in_stays_when_others_try_or_leave(self, app) -> None:
        there = app()
        ann, also_ann, guest, stranger = (Browser(there) for _ in range(4))
        for browser, name in ((ann, "ann"), (also_ann, "ann"), (guest, "guest")):
            assert browser.log_in(name).status_code == 303
        for _ in range(11):
            stranger.log_in("ann", "wrong")
        ann.post("/logout", "/")
        assert [each.get("/").status_code for each in (ann, also_ann, guest)] == [303, 200, 200]

    def test_who_is_named_no_more_is_out_and_the_others_stay(self, app) -> None:
        ann, guest = Browser(app()), Browser(app())
        ann.log_in()
        guest.log_in("guest")
        later = app(CONSOLE_PASSWORD_HASH=f"guest:read-only={HASH}")
        for browser, status in ((ann, 303), (guest, 200)):
            again = Browser(later)
            cookie = browser.client.get_cookie("iw_console", path="/console/")
            again.client.set_cookie("iw_console", cookie.value, path="/console/")
            assert again.get("/").status_code == status

    def test_names_that_nobody_has_fill_no_memory(self, app, redis) -> None:
        browser = Browser(app())
        for number in range(3):
            browser.log_in(f"nobody-{number}", "x")
        assert redis.keys("iw:console:failed:*") == [b"iw:console:failed:"]

    def test_names_that_nobody_has_are_limited_together(self, app, said) -> None:
        browser = Browser(app())
        statuses = [browser.log_in(f"nobody-{number}", "x").status_code for number in range(11)]
        assert statuses == [403] * 10 + [429]
        assert (said()[-1]["event"], said()[-1].get("by")) == ("console_login_limited", None)
        assert browser.log_in().status_code == 303

    def test_who_may_only_look_may_log_out(self, app) -> None:
        guest = Browser(app())
        guest.log_in("guest")
        assert guest.post("/logout", "/").status_code == 303
        assert guest.get("/").status_code == 303

    def test_a_login_is_known_by_its_hash_alone_and_ends(self, ann, redis) -> None:
        cookie = ann.client.get_cookie("iw_console", path="/console/")
        assert not [key for key in redis.keys("*") if cookie.value.encode() in key]
        (session,) = redis.keys("iw:console:session:*")
        assert 12 * 3600 - 60 < redis.ttl(session) <= 12 * 3600
        ann.post("/logout")
        assert not redis.exists(session)
        assert ann.get("/").status_code == 303

    def test_another_password_ends_a_login(self, ann, app) -> None:
        other = generate_password_hash("another password", "pbkdf2:sha256:1")
        again = Browser(app(CONSOLE_PASSWORD_HASH=f"ann={other}"))
        cookie = ann.client.get_cookie("iw_console", path="/console/")
        again.client.set_cookie("iw_console", cookie.value, path="/console/")
        assert again.get("/").status_code == 303

    def test_a_token_from_before_the_login_is_not_kept(self, app) -> None:
        browser = Browser(app())
        browser.get("/login")
        before = browser.client.get_cookie("iw_console", path="/console/").value
        browser.log_in()
        assert browser.client.get_cookie("iw_console", path="/console/").value != before

    @pytest.mark.parametrize(
        ("host", "secure"),
        [
            ("localhost", False),
            ("127.0.0.1:8000", False),
            ("[::1]:8000", False),
            ("console.example", True),
            ("localhost.evil.example:8000", True),
        ],
    )
    def test_the_cookie_leaves_this_machine_encrypted_only(self, app, host, secure) -> None:
        answer = Browser(app(), headers={"Host": host}).get("/login")
        cookie = answer.headers["Set-Cookie"]
        assert ("Secure" in cookie) == secure
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert "Path=/console/" in cookie
        assert "Max-Age=43200" in cookie

    @pytest.mark.parametrize("path", [*PAGES, "/login", "/static/console.css", "/events/evt_none"])
    def test_every_answer_has_the_strict_policy(self, ann, inbox, path) -> None:
        accept(inbox, "1")
        with ann.get(path) as answer:
            policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy


HEADER = {"CONSOLE_USER_HEADER": "X-Forwarded-User", "CONSOLE_PROXIES": "127.0.0.0/8,::1"}
ANN = {"X-Forwarded-User": "ann@example.com"}


class TestProxy:
    def test_whom_the_proxy_names_may_look(self, app) -> None:
        browser = Browser(app(**HEADER), headers=ANN)
        assert "ann, read only" in browser.get("/").text
        assert browser.post("/pause", "/", do="pause").status_code == 403

    def test_and_act_where_the_settings_say_so(self, app, redis) -> None:
        browser = Browser(app(**HEADER, CONSOLE_OPERATORS="ann@example.com"), headers=ANN)
        assert browser.post("/pause", "/", do="pause").status_code == 303
        assert repair.audit(redis, 1)[0].by == "ann", "and no address stands in Redis"

    @pytest.mark.parametrize(
        "name", ["ann@other.example", "ann", "ANN@example.com", "bob@example.com", "ann@example.co"]
    )
    def test_and_nobody_whose_name_is_only_like_theirs(self, app, redis, name) -> None:
        there = app(**HEADER, CONSOLE_OPERATORS="ann@example.com,carl@example.com")
        browser = Browser(there, headers={"X-Forwarded-User": name})
        assert "read only" in browser.get("/").text
        assert browser.post("/pause", "/", do="pause").status_code == 403
        assert repair.audit(redis, 1) == []

    @pytest.mark.parametrize(
        ("peer", "headers"),
        [
            ("10.0.0.1", ANN),
            ("", ANN),
            ("127.0.0.1", {}),
            ("127.0.0.1", {"X-Forwarded-User": ""}),
            ("127.0.0.1", {"X-Forwarded-User": "bob,ann@example.com"}),
        ],
    )
    def test_nobody_else_is_believed(self, app, peer, headers) -> None:
        browser = Browser(app(**HEADER), headers=headers, environ_overrides={"REMOTE_ADDR": peer})
        assert browser.get("/").status_code == 303
        assert "Your proxy logs people in" in browser.get("/login").text

    @pytest.mark.parametrize(
        ("peer", "lines", "believed"),
        [
            ("127.0.0.1", ["X-Forwarded-User: ann@example.com"], True),
            ("10.0.0.1", ["X-Forwarded-User: ann@example.com"], False),
            ("10.0.0.1", ["X-Forwarded-User: ann@example.com", "X-Forwarded-For: ::1"], False),
            ("unix", ["X-Forwarded-User: ann@example.com"], False),
            ("127.0.0.1", ["X_Forwarded_User: ann@example.com"], False),
            ("127.0.0.1", ["X-Forwarded_User: ann@example.com"], False),
            ("127.0.0.1", ["X-Forwarded-User: bob", "X-Forwarded-User: ann@example.com"], False),
            ("127.0.0.1", ["X-Forwarded-User: bob", "x-forwarded-user: ann@example.com"], False),
        ],
    )
    def test_our_server_hands_on_who_is_named_and_nobody_who_only_says_so(
        self, app, peer, lines, believed
    ) -> None:
        head = "\r\n".join(["GET /console/ HTTP/1.1", "Host: localhost", *lines])
        (exchange,), _ = HttpConnection(str).receive(f"{head}\r\n\r\n".encode())
        answer = wsgi.run(app(**HEADER), exchange.request, peer, ("127.0.0.1", 8000))
        assert answer.status == (200 if believed else 303)
        assert (b"ann, read only" in answer.body) == believed

    def test_the_header_means_nothing_unless_it_is_set(self, app) -> None:
        assert Browser(app(), headers=ANN).get("/").status_code == 303

    def test_a_header_without_a_proxy_is_refused_at_the_start(self, load) -> None:
        load(CONSOLE_USER_HEADER="X-Forwarded-User")
        with pytest.raises(SettingsError, match="CONSOLE_PROXIES: missing"):
            Settings.load("web")

    @pytest.mark.parametrize("name", ["CONSOLE_PROXIES", "CONSOLE_OPERATORS"])
    def test_what_does_nothing_without_the_header_is_refused(self, name, load) -> None:
        load(**{name: "10.0.0.7"})
        with pytest.raises(SettingsError, match=f"{name}: without CONSOLE_USER_HEADER"):
            Settings.load("web")


@pytest.mark.parametrize(
    "value",
    ["x", "ann", "ann=", f"ann={PASSWORD}", "an n=HASH", "ann=HASH,ann=HASH", "=HASH", "ann=HASH$"],
)
def test_a_hash_that_is_none_is_refused_and_not_shown(load, value) -> None:
    with pytest.raises(SettingsError, match="CONSOLE_PASSWORD_HASH") as error:
        load(CONSOLE_PASSWORD_HASH=value.replace("HASH", HASH))
    assert PASSWORD not in str(error.value)
    assert HASH not in str(error.value)


def test_the_command_prints_what_the_setting_takes(load) -> None:
    made = people.entry("ann", PASSWORD, may_act=False)
    (person,) = load(CONSOLE_PASSWORD_HASH=made).console_password_hash
    assert (person.name, person.may_act) == ("ann", False)
    assert person.password_hash not in repr(person)


FORMS = [
    ("/actions", {"action": "discard", "state": "dead"}),
    ("/actions", {"action": "replay", "key": "evt_1"}),
    ("/actions/0123456789ab", {"do": "confirm"}),
    ("/pause", {"do": "pause"}),
]


@pytest.mark.parametrize(("password", "code"), [("x" * 12, 0), ("x" * 11, 2), ("short", 2)])
def test_the_command_asks_for_a_long_password(load, password, code) -> None:
    done = CliRunner().invoke(main, ["console", "hash", "ann"], input=f"{password}\n")
    assert done.exit_code == code, done.output
    if code == 0:
        value = done.stdout.strip().removeprefix("CONSOLE_PASSWORD_HASH=")
        (person,) = load(CONSOLE_PASSWORD_HASH=value).console_password_hash
        assert check_password_hash(person.password_hash, password)


class TestForms:
    @pytest.mark.parametrize(("path", "fields"), [*FORMS, ("/logout", {})])
    @pytest.mark.parametrize("proof", ["", "0" * 64, "é"])
    def test_without_its_proof_none_does_anything(self, ann, redis, path, fields, proof) -> None:
        before = sorted(redis.keys("*"))
        answer = ann.send(path, proof=proof, **fields)
        assert answer.status_code == 403
        assert "out of date" in answer.text
        assert sorted(redis.keys("*")) == before

    def test_the_proof_of_another_session_is_none(self, ann, app) -> None:
        other = Browser(app())
        other.log_in()
        proof = re.search(r'name="proof" value="(\w+)"', other.get("/").text)[1]
        assert ann.send("/pause", proof=proof, do="pause").status_code == 403

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_one_that_another_site_sends_is_refused(self, ann, site) -> None:
        ann.options["headers"] = {"Sec-Fetch-Site": site}
        assert ann.post("/pause", "/", do="pause").status_code == 403

    @pytest.mark.parametrize("site", ["same-origin", "none"])
    def test_one_that_this_site_or_the_user_sends_is_taken(self, ann, redis, site) -> None:
        ann.options["headers"] = {"Sec-Fetch-Site": site}
        assert ann.post("/pause", "/", do="pause").status_code == 303
        assert [entry.action for entry in repair.audit(redis, 9)] == ["pause"]

    def test_a_login_form_needs_its_proof_too(self, app) -> None:
        browser = Browser(app())
        assert browser.send("/login", name="ann", password=PASSWORD).status_code == 403

    @pytest.mark.parametrize(("path", "fields"), FORMS)
    def test_who_may_only_look_does_nothing(self, app, inbox, redis, path, fields) -> None:
        die(inbox, accept(inbox, "1"))
        guest = Browser(app())
        guest.log_in("guest")
        before = sorted(redis.keys("*"))
        assert guest.post(path, "/", **fields).status_code == 403
        assert sorted(redis.keys("*")) == before

    @pytest.mark.parametrize("path", [*PAGES, "/events?state=dead", "/events?state=pending"])
    def test_who_may_only_look_is_offered_nothing(self, app, inbox, path) -> None:
        die(inbox, accept(inbox, "1"))
        accept(inbox, "2", session="vs_2")
        guest = Browser(app())
        guest.log_in("guest")
        page = guest.get(path)
        assert page.status_code == 200
        assert re.findall(r'action="([^"]+)"', page.text.split("<main")[1]) in (
            [],
            ["/console/events"],
        )

    @pytest.mark.parametrize("path", ["/actions", "/actions/x", "/pause", "/logout"])
    def test_no_address_does_anything(self, ann, path) -> None:
        assert ann.get(path).status_code in {404, 405}


class TestPages:
    def test_an_overview_is_kept_for_a_moment_but_not_when_somebody_acts(
        self, app, inbox, monkeypatch
    ) -> None:
        monkeypatch.setattr(pages, "LOOK_KEPT", 3600.0)
        ann, bob = Browser(app()), Browser(app())  # of two web processes
        ann.log_in()
        bob.log_in()

        def shown() -> list[str]:
            found = [
                re.search(r'id="to-pending"[^>]*>(\d+)<', each.get("/").text) for each in (ann, bob)
            ]
            return [each[1] for each in found]

        assert shown() == ["0", "0"]
        accept(inbox, "1")
        assert shown() == ["0", "0"]
        ann.post("/pause", on="/", do="pause")
        assert shown() == ["1", "1"]
        for each in (ann, bob):
            assert "no event is claimed" in each.get("/").text
        ann.post("/pause", on="/", do="resume")
        for each in (ann, bob):
            assert "no event is claimed" not in each.get("/").text
        accept(inbox, "2")
        monkeypatch.setattr(pages, "LOOK_KEPT", 0.0)
        assert shown() == ["2", "2"]

    def test_events_are_found_as_by_the_command(self, ann, inbox) -> None:
        die(inbox, accept(inbox, "dead"))
        end(inbox, accept(inbox, "done", session="vs_2"), "needs_input", "document_expired")
        accept(inbox, "pending", session="vs_3", account="acct_1")

        def found(query: str) -> set[str]:
            return set(re.findall(r">((?:acct_1-)?evt_\w+)</a>", ann.get(f"/events?{query}").text))

        every = {"evt_dead", "evt_done", "acct_1-evt_pending"}
        assert found("") == every
        assert found("state=dead") == found("handler=p.b") == found("session=vs_1") == {"evt_dead"}
        assert found("state=dead&reason=failed+KeyError") == {"evt_dead"}
        assert found("reason=document_expired") == {"evt_done"}
        assert found("account=acct_1") == {"acct_1-evt_pending"}
        assert found("since=1h") == every
        assert found("until=1h") == found("state=dead&handler=p.c") == set()

    def test_what_is_mistyped_is_said_beside_it_and_nothing_is_looked_for(self, ann, inbox) -> None:
        accept(inbox, "1")
        page = ann.get("/events?session=vs1&since=yesterday")
        assert page.status_code == 200
        assert page.text.count('aria-invalid="true"') == 2
        assert "evt_1" not in page.text

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ("state=nonsense", "is none of all, pending, dead, done"),
            ("sesion=vs_1", "there is no filter"),
            ("since=2h&until=3h", "until is not after since"),
            ("since=9999-12-31", "since is still to come"),
        ],
    )
    def test_no_filter_matches_more_than_it_says(self, ann, inbox, asked, said) -> None:
        accept(inbox, "1")
        page = ann.get(f"/events?{asked}")
        assert said in page.text
        assert "evt_1" not in page.text
        assert "No event is like that" not in page.text

    @pytest.mark.parametrize("state", ["all", "dead", "pending", "done"])
    @pytest.mark.parametrize(
        "begin", ["x", "1:", "1.2.3", "~x", "1.%00", "%FF", "9e9:evt_1", "nan:evt_1", "1" * 40]
    )
    def test_a_page_that_there_cannot_be_is_not_found(self, ann, state, begin) -> None:
        assert ann.get(f"/events?state={state}&begin={begin}").status_code == 404

    def test_what_waits_says_when_it_runs_next(self, ann, inbox) -> None:
        claim = claim_of(inbox, accept(inbox, "1"))
        inbox.release(claim, 600, "handlers wait for their retry")
        when = inbox.find("evt_1").waits_until.isoformat(sep=" ", timespec="seconds")
        assert when.removesuffix("+00:00") in ann.get("/events?state=pending").text

    def test_a_long_list_comes_in_pages(self, ann, inbox) -> None:
        for number in range(120):
            accept(inbox, f"{number:03}", session=f"vs_{number}")
        seen, path = [], "/events?state=pending"
        while path:
            text = ann.get(path).text
            seen += re.findall(r">(evt_\w+)</a>", text)
            following = re.search(r'href="/console([^"]+)">Next page', text)
            path = unescape(following[1]) if following else ""
        assert sorted(seen) == [f"evt_{number:03}" for number in range(120)]

    @pytest.mark.parametrize("name", ASKED)
    def test_each_page_is_of_what_was_asked_for_and_so_is_what_it_offers(
        self, ann, inbox, monkeypatch, name
    ) -> None:
        monkeypatch.setattr(pages, "ROWS", 2)
        wanted = mixed(inbox, name)
        seen, path = [], f"/events?state=dead&{name}={ASKED[name]}"
        while path and len(seen) < 20:
            text = ann.get(path).text
            seen += re.findall(r">((?:acct_1-)?evt_\w+)</a>", text)
            (form,) = re.findall(r"<form[^>]*/console/actions.*?</form>", text, re.DOTALL)
            hidden = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
            assert (hidden["state"], hidden[name]) == ("dead", ASKED[name])
            following = re.search(r'href="/console([^"]+)">Next page', text)
            path = unescape(following[1]) if following else ""
        assert (sorted(seen), path) == (sorted(wanted), "")

    def test_an_event_by_either_id_and_its_session(self, ann, inbox) -> None:
        key = accept(inbox, "1")
        die(inbox, key)
        text = ann.get(f"/events/{key}").text
        assert "p.b: dead at attempt 3: failed: KeyError at crm.py:4 save" in text
        assert "https://dashboard.stripe.com/test/events/evt_1" in text
        text = ann.get("/sessions/vs_1").text
        assert "https://dashboard.stripe.com/test/identity/verification-sessions/vs_1" in text
        assert text.count('class="reached"') == 1

    @pytest.mark.parametrize(
        ("changes", "path"),
        [
            ({"livemode": True}, "/events/evt_1"),
            ({"account": "acct_1"}, "/acct_1/test/events/evt_1"),
            ({"account": "acct_0/acct_1", "livemode": True}, "/acct_1/events/evt_1"),
        ],
    )
    def test_the_way_to_the_dashboard(self, ann, inbox, changes, path) -> None:
        key = accept(inbox, "1", **changes)
        assert f'"https://dashboard.stripe.com{path}"' in ann.get(f"/events/{key}").text

    @pytest.mark.parametrize(
        "path", ["/events/evt_none", "/events/x", "/sessions/vs_none", "/sessions/x", "/actions/x"]
    )
    def test_what_is_not_there_is_said(self, ann, path) -> None:
        assert ann.get(path).status_code == 404

    def test_handlers_tell_what_died_of_them_and_where(self, ann, inbox) -> None:
        inbox.note_handlers(["p.a", "p.b"])
        for number, reason in enumerate(["failed: KeyError at crm.py:4 save", "discarded: no"]):
            die(inbox, accept(inbox, str(number)), reason)
        text = ann.get("/handlers").text
        assert "1: failed KeyError" in text
        assert "1: discarded" in text
        assert "No worker lives" in text

    def test_handlers_tell_of_their_own_runs_in_the_workers_that_live(
        self, ann, inbox, redis
    ) -> None:
        inbox.note_handlers(["p.a", "p.ab"])
        now = inbox.now() * 1000

        def live(name: str, role: Any, age: float, hours: int = 0, **counts: float) -> None:
            started = now - hours * 3_600_000
            process = Process(role=role, pid=1, started=started, counts=counts)
            redis.hset(keys.PROCESSES, name, f"{now - round(age * 1000)} {process.encoded()}")

        one = {
            "handler_runs|p.a|done": 2,
            "handler_runs|p.ab|done": 30,
            "handler_runs|p.a|retry": 4,
        }
        slow = {"handler_seconds|p.a|0.1": 19, "handler_seconds|p.a|10": 1}
        others = {"handler_seconds|p.ab|300": 99, "handler_seconds|p.a|sum": 500}
        live("one", "worker", 1, 3, **one, **slow, **others)
        live("two", "worker", 1, 2, **one)
        live("gone", "worker", 600, 5, **one)
        live("web", "web", 1, 6, **one)
        text = " ".join(re.sub(r"<[^>]+>", " ", ann.get("/handlers").text).split())
        assert "of the workers that live, the first since 3 h" in text
        assert "p.a Runs 4 done, 8 retry Half of them within 0.1 s 95 of 100 within 0.1 s" in text
        assert "p.ab Runs 60 done Half of them within 300 s" in text

    @pytest.mark.usefixtures("within_an_hour")
    def test_outcomes_are_counted_once_by_day_and_reason(self, ann, inbox, redis) -> None:
        end(inbox, accept(inbox, "1"))
        end(inbox, accept(inbox, "2", kind="requires_input"), "needs_input", "document_expired")
        end(inbox, accept(inbox, "3", kind="requires_input"), "needs_input", "document_expired")
        key = accept(inbox, "4")
        die(inbox, key)
        assert inbox.replay(key) == "replayed"
        end(inbox, key)
        assert inbox.replay("evt_1", "all") == "replayed"
        end(inbox, "evt_1")
        today = inbox.now() // 86_400
        assert redis.hgetall(f"iw:outcomes:{today}") == {
            b"verified|verified|": b"2",
            b"requires_input|needs_input|document_expired": b"2",
        }
        assert redis.ttl(f"iw:outcomes:{today}") > 30 * 86_400
        text = ann.get("/outcomes").text
        assert "Of 4 checks that came to an end, 50 of 100 verified." in text

    @pytest.mark.usefixtures("within_an_hour")
    def test_the_table_of_outcomes_is_of_today_of_a_week_and_of_thirty_days(
        self, ann, inbox, redis
    ) -> None:
        today = inbox.now() // 86_400
        for ago, count in ((0, 1), (6, 10), (7, 100), (29, 1000), (30, 10_000)):
            redis.hset(f"iw:outcomes:{today - ago}", "verified|verified|", count)
        redis.hset(f"iw:outcomes:{today}", "requires_input|needs_input|document_expired", 5)
        redis.hset(f"iw:outcomes:{today}", "canceled|canceled|", 2)
        text = " ".join(re.sub(r"<[^>]+>", " ", ann.get("/outcomes").text).split())
        assert "verified 1 11 1111" in text
        assert "needs_input document_expired 5 5 5" in text
        rows = ("verified 1 11", "document_expired 5", "canceled 2 2")
        assert sorted(rows, key=text.index) == [*rows]
        assert "verified (1111) not verified (5) canceled (2)" in text
        assert "Of 1116 checks that came to an end, 100 of 100 verified." in text

    def test_a_redis_that_cannot_be_asked_is_said(self, app, new_server, said) -> None:
        server = new_server()
        browser = Browser(app(CONSOLE_PASSWORD_HASH=PEOPLE, REDIS_URL=server.url))
        browser.log_in()
        server.stop()
        answer = browser.get("/")
        assert answer.status_code == 503
        assert "Redis cannot be asked" in answer.text
        (line,) = [line for line in said() if line["event"] == "console_failed"]
        assert line["level"] == "warning"
        assert line["code"] == "ECONNREFUSED"


class TestActions:
    def confirm(self, browser: Browser, path: str) -> str:
        """Confirm an action, and go on until nothing is left; what the page says then."""
        answer = browser.post(path, path, do="confirm")
        for _ in range(10):
            text = browser.get(path).text
            if 'action="/console/actions' not in text:
                return text
            answer = browser.post(path, path)
            assert answer.status_code == 303
        pytest.fail("it does not end")

    def begin(self, browser: Browser, **fields: str) -> str:
        answer = browser.post("/actions", **fields)
        assert answer.status_code == 303, answer.text
        return str(answer.location).removeprefix("/console")

    def test_one_event_is_replayed(self, ann, inbox, redis) -> None:
        key = accept(inbox, "1")
        die(inbox, key)
        path = self.begin(ann, action="replay", key=key)
        assert "Replay 1 event?" in ann.get(path).text
        assert inbox.find(key).state == "dead", "not before it is confirmed"
        assert repair.audit(redis, 9) == []
        assert "Done." in self.confirm(ann, path)
        record = inbox.find(key)
        assert (record.state, record.acts[0].by, record.acts[0].what) == (
            "pending",
            "ann",
            "replay",
        )
        (entry,) = repair.audit(redis, 9)
        assert (entry.by, entry.action, entry.matched) == ("ann", "replay", 1)
        assert entry.on == {"keys": "evt_1", "handlers": "dead"}

    def test_all_that_match_are_done_in_steps_and_no_other(self, ann, inbox, redis) -> None:
        for number in range(250):
            die(inbox, accept(inbox, f"{number:03}", session=f"vs_{number}"))
        die(inbox, accept(inbox, "other", session="vs_other"), "discarded: no")
        path = self.begin(ann, action="discard", state="dead", reason="failed KeyError")
        assert "Discard 250 events?" in ann.get(path).text
        ann.post(path, path, do="confirm")
        text = ann.get(path).text
        assert "Discard: 50 of 250" in text, "after a reload it stands where it was"
        assert 'value="50"' in text
        die(inbox, accept(inbox, "late", session="vs_late"))
        assert "Discard: 250 of 250" in self.confirm(ann, path)
        dead = [record.key for record in inbox.search.all(Filter(state="dead"))]
        assert sorted(dead) == ["evt_late", "evt_other"]
        (entry,) = repair.audit(redis, 9)
        assert entry.matched == 250
        assert entry.on == {"state": "dead", "reason": "failed KeyError"}
        assert not redis.keys("iw:bulk:*:keys")

    @pytest.mark.parametrize("action", ["replay", "discard", "retry-now"])
    def test_it_is_recorded_under_who_confirmed_it(self, app, inbox, redis, action) -> None:
        """Whoever chose the events, or has the page open while it runs."""
        key = accept(inbox, "1")
        if action == "retry-now":
            inbox.release(claim_of(inbox, key), 600, "handlers wait for their retry")
        else:
            die(inbox, key)
        names = ("ann", "bob", "eve")
        there = app(**HEADER, CONSOLE_OPERATORS=",".join(f"{each}@a.example" for each in names))
        ann, bob, eve = (
            Browser(there, headers={"X-Forwarded-User": f"{each}@a.example"}) for each in names
        )
        path = self.begin(ann, action=action, key=key)
        assert bob.post(path, path, do="confirm").status_code == 303
        while 'action="/console/actions' in eve.get(path).text:
            eve.post(path, path)
        assert [act.by for act in inbox.find(key).acts] == ["bob"]
        assert [each.by for each in repair.audit(redis, 9)] == ["bob"]

    def test_what_matches_is_counted_in_steps(self, ann, inbox, monkeypatch) -> None:
        monkeypatch.setattr(bulk, "LOOK", 200)
        for number in range(450):
            die(inbox, accept(inbox, f"{number:03}", session=f"vs_{number}"))
        path = self.begin(ann, action="replay", state="dead")
        assert "200 so far." in ann.get(path).text
        ann.post(path, path)
        ann.post(path, path)
        assert "Replay 450 events?" in ann.get(path).text

    def test_what_is_left_out_is_counted_over_all_steps(
        self, ann, inbox, redis, monkeypatch
    ) -> None:
        monkeypatch.setattr(bulk, "LOOK", 1)
        monkeypatch.setattr(search, "CHUNK", 2)
        for number in range(8):
            die(inbox, key := accept(inbox, str(number), session=f"vs_{number}"))
            if number % 2:
                redis.hset(f"{keys.RECORD}{key}", "reason", "quarantined: its workers died")
        path = self.begin(ann, action="replay", state="dead")
        for _ in range(9):
            ann.post(path, path)
        text = ann.get(path).text
        assert "Replay 4 events?" in text
        assert "4 left out: their workers died" in text

    @pytest.mark.sample(4)
    @pytest.mark.parametrize("name", ["session", "account", "handler", "reason", "since", "until"])
    @pytest.mark.parametrize("action", ["discard", "replay"])
    def test_what_is_found_step_by_step_is_like_what_was_asked_for(
        self, ann, inbox, redis, monkeypatch, action, name
    ) -> None:
        """In each step, and what is not like that stays as it is."""
        monkeypatch.setattr(bulk, "LOOK", 1)
        monkeypatch.setattr(search, "CHUNK", 2)
        monkeypatch.setattr(bulk, "STEP", 2)
        wanted = mixed(inbox, name)
        before = {record.key: record for record in inbox.search.all(Filter(state="dead"))}
        path = self.begin(ann, action=action, state="dead", **{name: ASKED[name]})
        for _ in range(9):
            if "Counting" in ann.get(path).text:
                # Too early: it is not known yet how many they are.
                assert ann.post(path, path, do="confirm").status_code == 303
        assert repair.audit(redis, 9) == []
        assert f"{action.capitalize()} 5 events?" in ann.get(path).text
        self.confirm(ann, path)
        assert {key for key in before if inbox.find(key) != before[key]} == wanted

    def test_of_one_handler_it_is_that_one_that_runs_again(self, ann, inbox) -> None:
        for key in (accept(inbox, str(number), session=f"vs_{number}") for number in range(2)):
            claim = claim_of(inbox, key)
            for handler in ("p.b", "p.c"):
                inbox.save_progress(claim, handler, Progress("dead", 3, reason="failed: X"))
            inbox.finish(claim, "dead", outcome="verified", reason="p.b: failed: X")
        path = self.begin(ann, action="replay", state="dead", handler="p.b")
        self.confirm(ann, path)
        for key in ("evt_0", "evt_1"):
            left = {name: each.status for name, each in inbox.find(key).handlers.items()}
            assert left == {"p.c": "dead"}

    @pytest.mark.parametrize("acted", [False, True], ids=["before", "after it acted"])
    @pytest.mark.parametrize("action", ["discard", "replay"])
    def test_a_step_that_was_cut_off_is_repeated_and_no_event_is_left_out(
        self, ann, inbox, redis, monkeypatch, action, acted
    ) -> None:
        monkeypatch.setattr(bulk, "STEP", 2)
        every = [accept(inbox, str(number), session=f"vs_{number}") for number in range(5)]
        for key in every:
            die(inbox, key)
        path = self.begin(ann, action=action, state="dead")
        act, lasts = repair.Repair.act, []

        def cut_off(self: repair.Repair, *given: Any) -> Any:
            lasts.append(redis.pttl(f"iw:bulk:{path.rpartition('/')[2]}:step"))
            if acted:
                act(self, *given)
            raise RedisConnectionError

        with monkeypatch.context() as patch:
            patch.setattr(repair.Repair, "act", cut_off)
            assert ann.post(path, path, do="confirm").status_code == 503
        # Whoever is killed there keeps it for seconds, and not for ever.
        assert all(0 < ms <= bulk.LOCK for ms in lasts)
        text = self.confirm(ann, path)
        assert f"{action.capitalize()}: 5 of 5" in text
        assert {inbox.find(key).state for key in every} == {
            "done" if action == "discard" else "pending"
        }
        (entry,) = repair.audit(redis, 9)
        assert (entry.action, entry.matched) == (action, 5)

    def test_nothing_of_it_stays_for_ever(self, ann, inbox, redis, monkeypatch) -> None:
        monkeypatch.setattr(bulk, "LOOK", 1)
        monkeypatch.setattr(search, "CHUNK", 2)
        monkeypatch.setattr(bulk, "STEP", 2)
        for number in range(5):
            die(inbox, accept(inbox, str(number), session=f"vs_{number}"))

        def kept() -> None:
            lasts = {key: redis.ttl(key) for key in redis.keys("iw:bulk*")}
            assert all(0 < seconds <= bulk.KEPT for seconds in lasts.values()), lasts

        self.begin(ann, action="discard", key="evt_0")
        kept()
        path = self.begin(ann, action="discard", state="dead")
        stages = set()
        for _ in range(12):
            kept()
            text = ann.get(path).text
            stages.add(re.search(r"<h1>(\w+)", text)[1])
            ann.post(path, "/events", do="confirm" if "?</h1>" in text else "")
        kept()
        assert "Done." in ann.get(path).text
        assert stages == {"Counting", "Discard"}

    def test_there_is_a_most(self, ann, inbox, monkeypatch) -> None:
        monkeypatch.setattr(bulk, "MOST", 3)
        monkeypatch.setattr(pages, "MOST", 3)
        for number in range(5):
            die(inbox, accept(inbox, str(number), session=f"vs_{number}"))
        text = ann.get(self.begin(ann, action="replay", state="dead")).text
        assert "Replay 3 events?" in text
        assert "These are the first 3" in text

    def test_an_action_can_be_stopped(self, ann, inbox, redis) -> None:
        for number in range(150):
            die(inbox, accept(inbox, f"{number:03}", session=f"vs_{number}"))
        path = self.begin(ann, action="discard", state="dead")
        ann.post(path, path, do="confirm")
        ann.post(path, path, do="stop")
        assert "Stopped; 100 were left as they are." in ann.get(path).text
        newest, _ = repair.audit(redis, 10)
        assert (newest.by, newest.action, newest.matched) == ("ann", "stop", 100)
        assert newest.on == {"state": "dead", "action": "discard"}
        ann.post(path, "/events", do="confirm")
        assert len(list(inbox.search.all(Filter(state="dead")))) == 100

    def test_what_is_done_cannot_be_stopped(self, ann, inbox) -> None:
        die(inbox, accept(inbox, "1"))
        path = self.begin(ann, action="discard", state="dead")
        ann.post(path, path, do="confirm")
        ann.post(path, "/events", do="stop")
        assert "Stopped" not in ann.get(path).text

    def test_of_two_steps_at_once_one_does_something(self, ann, inbox, redis) -> None:
        die(inbox, accept(inbox, "1"))
        path = self.begin(ann, action="discard", state="dead")
        redis.set(f"iw:bulk:{path.rpartition('/')[2]}:step", 1)
        ann.post(path, path, do="confirm")
        assert inbox.find("evt_1").state == "dead"

    def test_what_waits_runs_now(self, ann, inbox) -> None:
        claim = claim_of(inbox, accept(inbox, "1"))
        inbox.save_progress(claim, "p.b", Progress("retry", 1, reason="failed: X"), delay=600)
        inbox.release(claim, 600, "handlers wait for their retry")
        path = self.begin(ann, action="retry-now", state="pending")
        assert "Done." in self.confirm(ann, path)
        assert inbox.find("evt_1").waits_until is None

    @pytest.mark.parametrize("asked", [{}, {"handler": "p.b"}], ids=["all", "of the one that ran"])
    def test_quarantined_ones_are_replayed_only_when_asked_for(
        self, ann, inbox, redis, asked
    ) -> None:
        die(inbox, accept(inbox, "1"))
        key = accept(inbox, "2", session="vs_2")
        for _ in range(3):
            claim = claim_of(inbox, key)
            assert isinstance(claim, Claim)
            inbox.note_death(key, claim.token, "p.b")
            redis.hset(f"iw:evt:{key}", "lease", 1)
        claim_of(inbox, key)
        assert inbox.find(key).is_quarantined
        text = ann.get(self.begin(ann, action="replay", state="dead", **asked)).text
        assert "Replay 1 event?" in text
        assert "1 left out" in text
        path = self.begin(ann, action="replay", state="dead", reason="quarantined", **asked)
        assert "Replay 1 event?" in ann.get(path).text

    def test_a_handler_that_no_worker_has_is_refused(self, ann, inbox) -> None:
        inbox.note_handlers(["p.a"])
        die(inbox, accept(inbox, "1"))
        answer = ann.post("/actions", action="replay", state="dead", handler="p.b")
        assert answer.status_code == 409
        assert (
            ann.post("/actions", action="discard", state="dead", handler="p.b").status_code == 303
        )

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"action": "explode", "state": "dead"}, 400),
            ({"action": "replay", "state": "all"}, 400),
            ({"action": "replay", "state": "pending"}, 400),
            ({"action": "retry-now", "state": "dead"}, 400),
            ({"action": "discard", "state": "dead", "since": "yesterday"}, 400),
            ({"action": "discard", "state": "dead", "sesion": "vs_1"}, 400),
            ({"action": "discard", "state": "dead", "since": "2h", "until": "3h"}, 400),
            ({"action": "replay", "key": "evt_none"}, 409),
            ({"action": "replay", "key": "nonsense"}, 404),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, ann, redis, fields, status) -> None:
        assert ann.post("/actions", **fields).status_code == status
        assert not redis.keys("iw:bulk*")

    def test_workers_are_paused_and_go_on(self, ann, inbox, redis) -> None:
        ann.post("/pause", "/", do="pause")
        until, why = inbox.paused()
        assert why == "by ann"
        assert 3500 < until - inbox.now() < 3602, "an hour"
        assert "Have the workers go on" in ann.get("/").text
        ann.post("/pause", "/", do="resume")
        assert inbox.paused() is None
        assert ann.post("/pause", "/", do="resum").status_code == 400
        assert inbox.paused() is None
        assert [entry.action for entry in repair.audit(redis, 9)] == ["resume", "pause"]

    def test_a_relative_time_is_a_moment_once_an_action_has_begun(self, ann, inbox, redis) -> None:
        die(inbox, accept(inbox, "1"))
        path = self.begin(ann, action="discard", state="dead", since="2h", until="1h")
        spec = json.loads(redis.hget(f"iw:bulk:{path.rpartition('/')[2]}", "spec"))
        for name, seconds in (("since", 7200), ("until", 3600)):
            moment = datetime.fromisoformat(spec[3][name])
            assert seconds - 100 < (datetime.now(UTC) - moment).total_seconds() < seconds + 100
