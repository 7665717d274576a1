"""`workers.router`: what is collected, what is refused, when a failed run is repeated."""

from __future__ import annotations

import functools
import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_settings import BaseSettings, SettingsConfigDict
from stripe.identity import VerificationSession

from identity_webhooks import Verification, on, on_start
from identity_webhooks.event import KINDS
from identity_webhooks.handlers import RETRY_FOR
from identity_webhooks.reasons import Reason
from identity_webhooks.verification import Outcome
from service.inbox import Progress
from workers.router import (
    RETRY_BASE,
    RETRY_CAP,
    BadPlugin,
    Handler,
    Router,
    backoff,
)
from workers.verification import Facts

DAY = 86_400


def nothing(v: Verification) -> None:
    """A handler's body."""


def copy_of(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def copy(v: Verification) -> None:
        function(v)

    copy.__name__ = name
    return copy


@pytest.fixture
def module() -> Iterator[Callable[..., ModuleType]]:
    """Make a module that holds these functions and classes, as if it had been imported."""
    made = []

    def module(**members: Any) -> ModuleType:
        made.append(ModuleType(f"plugin_{len(made)}"))
        for name, member in members.items():
            member.__module__ = made[-1].__name__
            setattr(made[-1], name, member)
        sys.modules[made[-1].__name__] = made[-1]
        return made[-1]

    yield module
    for each in made:
        del sys.modules[each.__name__]


def one(mark: Callable[[Any], Any], function: Callable[..., Any] = nothing) -> Handler:
    """Return the handler that this mark makes."""

    class Plugin:
        handle = staticmethod(mark(copy_of(function, "handle")))

    router = Router()
    router.add(Plugin(), "p")
    return router.handlers[0]


def faults(plugin: object, router: Router | None = None) -> list[str]:
    router = router or Router()
    before = list(router.handlers)
    with pytest.raises(BadPlugin) as caught:
        router.add(plugin, "p")
    assert router.handlers == before, "a plugin with a fault adds nothing"
    assert str(caught.value) == "\n".join(caught.value.faults)
    # Those of a function end with its place, which lies in this file.
    return [
        re.sub(r" \(tests/unit/workers/test_router\.py:\d+\)$", "", f) for f in caught.value.faults
    ]


class TestMarking:
    def test_registers_nothing_and_returns_the_function_itself(self) -> None:
        calls = []

        def handle(v: object) -> None:
            calls.append(v)

        marked = on("verified")(handle)
        assert marked is handle
        marked("a test calls it like any function")
        assert calls == ["a test calls it like any function"]

    def test_the_defaults(self) -> None:
        handler = one(on("verified"))
        assert (handler.events, handler.needs, handler.reasons) == ({"verified"}, set(), set())
        assert (handler.superseded, handler.retries, handler.timeout) == (False, None, 60)

    def test_everything_that_can_be_said(self) -> None:
        handler = one(
            on(
                "requires_input",
                needs=["verified_outputs.dob"],
                reason=["document_expired"],
                superseded=True,
                retries=3,
                timeout=1.5,
            )
        )
        assert handler.name == "p.handle"
        assert handler.events == {"requires_input"}
        assert handler.needs == {"verified_outputs.dob"}
        assert handler.reasons == {"document_expired"}
        assert (handler.superseded, handler.retries, handler.timeout) == (True, 3, 1.5)

    def test_a_lone_string_is_one_word(self) -> None:
        handler = one(on("requires_input", needs="verified_outputs.dob", reason="abandoned"))
        assert handler.needs == {"verified_outputs.dob"}
        assert handler.reasons == {"abandoned"}

    def test_a_star_is_every_event(self) -> None:
        assert one(on("*")).events == set(KINDS)


class TestCollecting:
    def test_a_module_gives_its_functions_in_their_order(self, module) -> None:
        functions = {
            name: on("verified")(copy_of(nothing, name)) for name in ("zebra", "ant", "mule")
        }
        router = Router()
        router.add(module(**functions), "farm", "file farm")
        assert [handler.name for handler in router.handlers] == [
            "farm.zebra",
            "farm.ant",
            "farm.mule",
        ]
        assert {handler.origin for handler in router.handlers} == {"file farm"}

    def test_plugins_stay_in_the_order_they_came_in(self, module) -> None:
        router = Router()
        for name in ("b", "a"):
            router.add(module(handle=on("verified")(copy_of(nothing, "handle"))), name)
        assert [handler.name for handler in router.match("verified")] == ["b.handle", "a.handle"]

    def test_a_handler_imported_from_elsewhere_is_not_the_modules(self, module) -> None:
        plugin = module(own=on("verified")(copy_of(nothing, "own")))
        plugin.borrowed = on("verified")(copy_of(nothing, "borrowed"))
        router = Router()
        router.add(plugin, "p")
        assert [handler.name for handler in router.handlers] == ["p.own"]

    def test_a_decorated_handler_keeps_its_mark(self, module) -> None:
        def logged(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def wrapper(*args: Any) -> Any:
                return function(*args)

            return wrapper

        router = Router()
        router.add(module(handle=logged(on("verified")(copy_of(nothing, "handle")))), "p")
        assert [handler.name for handler in router.handlers] == ["p.handle"]

    def test_an_object_gives_its_methods_bound_inherited_and_static_ones_too(self) -> None:
        class Base:
            @on("verified")
            def inherited(self, v: Verification) -> object:
                return self

        class Plugin(Base):
            @on("verified")
            def own(self, v: Verification) -> object:
                return self

            @staticmethod
            @on("verified")
            def static(v: Verification) -> object:
                return "static"

            @classmethod
            @on("verified")
            def of_class(cls, v: Verification) -> object:
                return cls

            def unmarked(self, v: Verification) -> None: ...

        plugin, router = Plugin(), Router()
        router.add(plugin, "p")
        answers = {handler.name: handler.function(None) for handler in router.handlers}
        assert answers == {
            "p.inherited": plugin,
            "p.own": plugin,
            "p.static": "static",
            "p.of_class": Plugin,
        }

    def test_a_settings_class_is_built_from_the_environment(self, module, monkeypatch) -> None:
        class Crm(BaseSettings):
            model_config = SettingsConfigDict(env_prefix="crm_")
            url: str

            @on("verified")
            def save(self, v: Verification) -> str:
                return self.url

        monkeypatch.setenv("CRM_URL", "https://crm.example")
        for plugin in (Crm, module(Crm=Crm)):
            router = Router()
            router.add(plugin, "acme")
            assert [handler.name for handler in router.handlers] == ["acme.save"]
            assert router.handlers[0].function(None) == "https://crm.example"

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_event_goes_to_those_that_subscribe(self, kind) -> None:
        class Plugin:
            everything = staticmethod(on("*")(copy_of(nothing, "everything")))
            ends = staticmethod(on("verified", "canceled")(copy_of(nothing, "ends")))

        router = Router()
        router.add(Plugin(), "p")
        names = [handler.name for handler in router.match(kind)]
        both = ["p.everything", "p.ends"]
        assert names == (both if kind in {"verified", "canceled"} else both[:1])


class TestFaults:
    NUMBER = "retries= must be a whole number, 0 or more"
    SECONDS = "timeout= must be a number of seconds, more than 0"
    CASES: ClassVar = {
        "no event": (on(), "names no event: one of created, processing, "),
        "event": (on("verifed"), "unknown event 'verifed': perhaps 'verified'"),
        "field": (on("*", needs=["dob"]), "unknown field in needs 'dob': one of verified_outp"),
        "a field's name": (
            on("*", needs=["verified_output.dob"]),
            "unknown field in needs 'verified_output.dob': perhaps 'verified_outputs.dob'",
        ),
        "no such event": (
            on("verified", reason=["abandoned"]),
            "reason= filters requires_input events, which",
        ),
        "hides others": (
            on("requires_input", "verified", reason=["abandoned"]),
            "reason= would hide its other events",
        ),
        "hides all others": (on("*", reason=["abandoned"]), "reason= would hide its other events"),
        "reason": (
            on("requires_input", reason="document_expird"),
            "unknown reason 'document_expird': perhaps 'document_expired'. For a code newer",
        ),
        "truth as text": (on("*", superseded="no"), "superseded= must be True or False"),
        "retries as truth": (on("*", retries=True), NUMBER),
        "no words": (on("*", needs=None), "unknown field in needs None: one of verified_outp"),
        "fewer than no retries": (on("*", retries=-1), NUMBER),
        "retries as text": (on("*", retries="3"), NUMBER),
        "no time": (on("*", timeout=0), SECONDS),
        "nan": (on("*", timeout=math.nan), SECONDS),
        "for ever": (on("*", timeout=math.inf), SECONDS),
        "time as text": (on("*", timeout="60"), SECONDS),
    }

    @pytest.mark.parametrize(("mark", "fault"), CASES.values(), ids=CASES)
    def test_each_has_its_own_message(self, mark, fault, module) -> None:
        (found,) = faults(module(handle=mark(copy_of(nothing, "handle"))))
        assert found.startswith(f"p.handle: {fault}")

    def test_an_async_handler_would_never_run(self, module) -> None:
        async def coroutine(v: Verification) -> None: ...

        async def agen(v: Verification) -> Any:
            yield

        def generator(v: Verification) -> Any:
            yield

        marked = {f.__name__: on("verified")(f) for f in (coroutine, agen, generator)}
        assert faults(module(**marked)) == [
            "p.coroutine: is async: handlers are plain functions: write def, not async def",
            "p.agen: is async: handlers are plain functions: write def, not async def",
            "p.generator: is a generator: calling it runs nothing of it: take the yield out",
        ]

    @pytest.mark.parametrize(
        ("function", "found"),
        [(lambda: None, ""), (lambda v, w: None, "v, w"), (lambda *, v: None, "v")],
        ids=["none", "two", "by name only"],
    )
    def test_wrong_arguments(self, function, found, module) -> None:
        function.__name__ = "handle"
        assert faults(module(handle=on("verified")(function))) == [
            f"p.handle: must take one argument, the Verification, and takes ({found}): write"
            " def handle(v: Verification)"
        ]

    def test_a_plugin_without_handlers(self, module) -> None:
        holds_none = ["holds no handler: mark a function with @on(...)"]
        assert faults(module(helper=copy_of(nothing, "helper"))) == holds_none
        assert faults(object()) == holds_none

        def start() -> None: ...

        assert faults(module(start=on_start(start))) == holds_none

    def test_a_name_that_is_taken(self, module) -> None:
        router = Router()
        router.add(module(handle=on("verified")(copy_of(nothing, "handle"))), "p")
        again = module(handle=on("canceled")(copy_of(nothing, "handle")))
        taken = [
            "p.handle: the name is taken by another handler: rename one; a plugin is named by the"
            " last word of its path in HANDLERS, or by its entry point"
        ]
        assert faults(again, router) == taken

    def test_a_name_that_is_taken_in_one_plugin(self, module) -> None:
        class Crm(BaseSettings):
            @on("canceled")
            def handle(self, v: Verification) -> None: ...

        (taken,) = faults(module(handle=on("verified")(copy_of(nothing, "handle")), Crm=Crm))
        assert taken.startswith("p.handle: the name is taken by another handler: rename one; ")

    def test_a_name_twice_in_one_plugin(self, module) -> None:
        function = on("verified")(copy_of(nothing, "handle"))
        assert faults(module(a=function, b=function)) == [
            "p.handle: is the same function as p.handle: name it once"
        ]

    def test_missing_and_wrong_settings_are_named_and_not_quoted(self, module, monkeypatch) -> None:
        class Crm(BaseSettings):
            model_config = SettingsConfigDict(env_prefix="crm_")
            url: str
            port: int

            @on("verified")
            def save(self, v: Verification) -> None: ...

        monkeypatch.setenv("CRM_PORT", "sk_test_pasted_wrongly")
        for plugin in (Crm, module(Crm=Crm)):
            missing, wrong = faults(plugin)
            assert (
                missing
                == "setting CRM_URL: Field required: set it in the environment of the worker"
            )
            assert wrong.startswith("setting CRM_PORT: Input should be a valid integer")
            assert "pasted" not in wrong

    def test_a_class_that_cannot_be_built(self) -> None:
        class Broken:
            def __init__(self) -> None:
                raise OSError("no route to redis://:secret@host")

        assert faults(Broken) == ["cannot be built: OSError: no route to redis://***@host"]

    def test_all_faults_at_once(self, module) -> None:
        plugin = module(
            a=on("verifed", needs=["dob"], retries=-1)(copy_of(nothing, "a")),
            b=on("verified")(copy_of(nothing, "b")),
            c=on()(copy_of(nothing, "c")),
        )
        assert [fault.split(":")[0] for fault in faults(plugin)] == ["p.a", "p.a", "p.a", "p.c"]


class TestFailedRuns:
    """`Handler.failed`: how a failed attempt is recorded, and when the next comes."""

    @pytest.mark.parametrize(
        ("retries", "attempt", "status"),
        [(0, 1, "dead"), (1, 1, "retry"), (1, 2, "dead"), (3, 3, "retry"), (3, 4, "dead")],
    )
    def test_a_number_of_retries_is_that_many_more_runs(self, retries, attempt, status) -> None:
        before = Progress("retry", attempt - 1, since=1)
        progress, delay = one(on("*", retries=retries)).failed(before, 10 * DAY * 1000, "why")
        assert (progress.status, progress.attempts, progress.reason) == (status, attempt, "why")
        assert status == "retry" or delay == 0

    @pytest.mark.parametrize(
        ("age", "status"), [(0, "retry"), (3 * DAY, "retry"), (3 * DAY + 1, "dead")]
    )
    def test_without_a_number_it_is_three_days_from_its_first_failure(self, age, status) -> None:
        handler, now = one(on("*")), 1_000 * DAY * 1000
        before = Progress("retry", 10_000, since=now - age * 1000)
        progress, _ = handler.failed(before, now, "why")
        assert (progress.status, progress.attempts) == (status, 10_001)
        assert progress.since == (before.since if status == "retry" else 0)
        assert handler.is_last(before, now) == (status == "dead")

    def test_the_first_failure_is_when_it_failed(self) -> None:
        waited = Progress("retry", 0, reason="stripe: unreachable")
        progress, _ = one(on("*")).failed(waited, 1_000 * DAY * 1000, "why")
        assert (progress.status, progress.since) == ("retry", 1_000 * DAY * 1000)

    @given(st.integers(1, 10**9))
    def test_jitter_is_full_within_bounds(self, attempt) -> None:
        progress, delay = one(on("*")).failed(Progress("retry", attempt - 1), 0, "why")
        assert progress.status == "retry"
        assert 0 <= delay <= min(RETRY_CAP, RETRY_BASE * 2 ** min(attempt, 64))

    def test_jitter_uses_the_whole_range(self) -> None:
        waits = [backoff(5) for _ in range(1000)]
        assert min(waits) < 6.4
        assert max(waits) > 57.6
        assert max(backoff(5, cap=10) for _ in range(1000)) <= 10

    def test_the_longest_wait_doubles_up_to_an_hour(self, monkeypatch) -> None:
        monkeypatch.setattr(random, "uniform", lambda shortest, longest: longest)
        waits = [backoff(attempt) for attempt in (1, 2, 5, 11, 12, 10**6)]
        assert waits == [4, 8, 64, 3600, 3600, 3600]

    @given(st.floats(0, RETRY_FOR))
    def test_a_handler_may_say_when(self, delay) -> None:
        assert one(on("*")).failed(Progress("retry", 0), 0, "why", delay)[1] == delay


@pytest.mark.parametrize("superseded", [False, True])
@pytest.mark.parametrize("also_superseded", [False, True])
@pytest.mark.parametrize("wanted", [None, "document_expired", "abandoned"])
@pytest.mark.parametrize("reason", [None, "document_expired", "consent_declined"])
def test_a_handler_runs_for_what_it_asked_for(
    superseded: bool, also_superseded: bool, wanted: Reason | None, reason: str | None
) -> None:
    """One that asks for a reason is not told of a session without one."""
    handler = one(on("requires_input", superseded=also_superseded, reason=wanted and [wanted]))
    session = VerificationSession.construct_from({}, None)
    facts = Facts(session, None, Outcome("needs_input", reason), superseded=superseded)
    if superseded and not also_superseded:
        assert facts.skips(handler) == "superseded"
    else:
        assert facts.skips(handler) == ("skipped" if wanted and reason != wanted else None)
