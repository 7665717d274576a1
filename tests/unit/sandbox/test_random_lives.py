"""A thousand sessions through random operations, legal and not, against a small model.

The model knows only what the documentation says. After every step each session is compared with
it, and at the end every event with what its session was at that moment.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from stripe_identity_sandbox.checks import LAST_ERRORS, OUTCOMES
from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.server import create_app
from stripe_identity_sandbox.state import World

from .conftest import SESSIONS, Api

DAY = 24 * 3600
REDACTION = 4 * DAY
made = 0


@dataclass
class Model:
    """One session as the documentation has it."""

    metadata: dict[str, str]
    now: Callable[[], float]
    #: When the newest link was made: its url opens for 48 hours, its client_secret for 24.
    linked: float | None
    status: str = "requires_input"
    last_error: str | None = None
    redaction: str | None = None
    reports: int = 0
    plan: str | None = None
    due: float | None = None
    #: What each event has to show.
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def visible(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "last_error": self.last_error,
            "redaction": self.redaction,
            "metadata": dict(self.metadata),
            "reported": self.reports > 0,
            "url": self.younger(2 * DAY),
            "client_secret": self.younger(DAY),
        }

    def younger(self, lifetime: float) -> bool:
        return self.linked is not None and self.now() < self.linked + lifetime

    def emit(self, change: str) -> None:
        self.events.append((f"identity.verification_session.{change}", self.visible()))

    def finish(self) -> None:
        self.due = None
        if self.status == "processing":
            self.reports += 1
            if self.plan == "verified":
                self.status = "verified"
            else:
                self.status, self.last_error = "requires_input", self.plan
            self.emit(self.status)
        else:
            self.redaction, self.metadata = "redacted", {}
            for _, shown in self.events:
                shown |= {"metadata": {}, "url": False, "client_secret": False}
            self.emit("redacted")


def visible(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": view["status"],
        "last_error": view["last_error"] and view["last_error"]["code"],
        "redaction": view["redaction"] and view["redaction"]["status"],
        "metadata": view["metadata"],
        "reported": view["last_verification_report"] is not None,
        "url": view["url"] is not None,
        "client_secret": view["client_secret"] is not None,
    }


class Lives(RuleBasedStateMachine):
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_795_000_000.0
        world = World(clock=lambda: self.now)
        self.api = Api(world, create_app(world, Faults()).test_client())
        self.models: dict[str, Model] = {}

    @rule(target=sessions, count=st.integers(1, 6), user=st.sampled_from("ab"))
    def create(self, count: int, user: str) -> Any:
        global made  # noqa: PLW0603 -- counted over all runs of the machine
        created = [
            self.api.create(f"type=document&metadata[user]={user}")["id"] for _ in range(count)
        ]
        for id_ in created:
            self.models[id_] = Model({"user": user}, lambda: self.now, self.now)
            self.models[id_].emit("created")
        made += count
        return multiple(*created)

    @rule(id_=sessions)
    def retrieve(self, id_: str) -> None:
        model = self.models[id_]
        if model.status == "requires_input" and not model.younger(DAY):
            model.linked = self.now
        assert visible(self.call("get", id_)) == model.visible()

    @rule(id_=sessions, value=st.sampled_from(["", "x", "y"]))
    def update(self, id_: str, value: str) -> None:
        model = self.models[id_]
        if model.status == "requires_input":
            model.metadata = {"user": value} if value else {}
            self.call("update", id_, body=f"metadata[user]={value}")
        else:
            self.call("update", id_, body=f"metadata[user]={value}", status=400)

    @rule(id_=sessions)
    def cancel(self, id_: str) -> None:
        model = self.models[id_]
        if model.redaction or model.status in {"processing", "verified"}:
            self.call("cancel", id_, status=400)
            return
        if model.status != "canceled":
            model.status, model.last_error, model.linked = "canceled", None, None
            model.emit("canceled")
        self.call("cancel", id_)

    @rule(id_=sessions)
    def redact(self, id_: str) -> None:
        model = self.models[id_]
        if model.status == "processing":
            self.call("redact", id_, status=400)
            return
        if not model.redaction:
            model.redaction, model.due = "processing", self.now + REDACTION
            model.last_error, model.linked = None, None
            if model.status == "requires_input":
                model.status = "canceled"
                model.emit("canceled")
        self.call("redact", id_)

    @rule(
        id_=sessions,
        outcome=st.sampled_from(OUTCOMES),
        later=st.sampled_from(["now", "hold", "delay"]),
    )
    def submit(self, id_: str, outcome: str, later: str) -> None:
        model = self.models[id_]
        body: dict[str, Any] = {"outcome": outcome}
        body |= {"now": {}, "hold": {"hold": True}, "delay": {"delay": 60}}[later]
        answer = self.api.control(f"sessions/{id_}/submit", **body)
        if model.status != "requires_input":
            assert answer.status_code == 400
            return
        assert answer.status_code == 200
        model.status, model.last_error, model.linked, model.plan = "processing", None, None, outcome
        model.emit("processing")
        if later == "now":
            model.finish()
        elif later == "delay":
            model.due = self.now + 60

    @rule(id_=sessions)
    def complete(self, id_: str) -> None:
        model = self.models[id_]
        answer = self.api.control(f"sessions/{id_}/complete")
        if model.status == "processing" or model.redaction == "processing":
            assert answer.status_code == 200
            model.finish()
        else:
            assert answer.status_code == 400

    @rule(seconds=st.sampled_from([1, 60, 3600, DAY, REDACTION]))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        due = [m for m in self.models.values() if m.due is not None and m.due <= self.now]
        for model in sorted(due, key=lambda model: model.due or 0):
            model.finish()
        with self.api.world.step():
            pass

    @invariant()
    def every_session_is_what_the_model_says(self) -> None:
        for id_, model in self.models.items():
            world = self.api.world
            assert visible(world.view(world.sessions[id_])) == model.visible()

    def teardown(self) -> None:
        world = self.api.world
        told: dict[str, list[tuple[str, dict[str, Any]]]] = {id_: [] for id_ in self.models}
        for event in world.events.by_id.values():
            told[event.session].append((event.type, visible(event.snapshot)))
        for id_, model in self.models.items():
            assert told[id_] == model.events
            reports = [r for r in world.reports.by_id.values() if r.session == id_]
            assert len(reports) == model.reports
        for session in world.sessions.values():
            possible(session, world.view(session))

    def call(self, verb: str, id_: str, *, body: str = "", status: int = 200) -> Any:
        path = f"{SESSIONS}/{id_}"
        answer = {
            "get": lambda: self.api.get(path),
            "update": lambda: self.api.post(path, body),
            "cancel": lambda: self.api.post(f"{path}/cancel"),
            "redact": lambda: self.api.post(f"{path}/redact"),
        }[verb]()
        assert answer.status_code == status, answer.text
        return answer.json


def possible(session: Any, view: dict[str, Any]) -> None:
    """No documented session looks like the negation of any of these."""
    assert view["status"] in {"requires_input", "processing", "verified", "canceled"}
    if view["last_error"]:
        assert view["status"] == "requires_input"
        assert view["last_error"]["code"] in LAST_ERRORS
        assert view["last_verification_report"]
    if view["status"] == "verified":
        assert view["last_verification_report"]
    if view["url"]:
        assert view["status"] == "requires_input"
        assert not view["redaction"]
    if view["redaction"]:
        assert view["status"] in {"verified", "canceled"}
    assert (session.outcome is not None) == (view["status"] == "processing")


def test_a_thousand_random_lives() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Lives,
        settings=settings(
            max_examples=70,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )
    assert made >= 1000, "the machine has to see a thousand sessions"
