"""Mistakes that authors of handlers make: each is refused, or fails, with what to do, none silent.

The first table is refused when plugins are loaded, with file and line; the second fails when the
handler runs, in words that stand in the log and in the event's record.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

from identity_webhooks import Discard, Retry, Verification, on
from identity_webhooks.once import TABLE, create_table
from service.settings import Settings
from workers import plugins

SECRET = "tops3cret-value"

# name: (the module `acme`, the line it is refused for, what is said)
REFUSED: dict[str, tuple[str, int, str]] = {
    "no parentheses": (
        "@on\ndef f(v): ...",
        4,
        'acme.f: is marked by @on without parentheses: write @on("verified")',
    ),
    "not used as a decorator": ('on("verified")\ndef f(v): ...', 4, "on(...) marks nothing"),
    "a method of a plain class": (
        'class Crm:\n    @on("verified")\n    def f(self, v): ...',
        5,
        "f is a method of the class Crm, which no plugin holds",
    ),
    "an override without the mark": (
        "class Base(BaseSettings):\n"
        '    @on("verified")\n    def g(self, v): ...\n'
        "class Crm(Base):\n    def g(self, v): ...\n"
        "del Base",
        5,
        "g is a method of the class Base, which no plugin holds (or it is overridden without @on)",
    ),
    "a class": ('@on("verified")\nclass Crm: ...', 4, "Crm is a class: write @on(...) above a"),
    "a callable object": (
        'class Crm:\n    def __call__(self, v): ...\nf = on("verified")(Crm())',
        6,
        "a Crm object is marked, not a function: write a function that calls it",
    ),
    "a partial function": (
        'import functools\ndef g(a, v): ...\nf = on("verified")(functools.partial(g, 1))',
        6,
        "a partial object is marked, not a function",
    ),
    "a bound method": (
        'class Crm:\n    def g(self, v): ...\nf = on("verified")(Crm().g)',
        6,
        "a method object is marked, not a function",
    ),
    "a function of Python's": ('f = on("verified")(print)', 4, "a builtin_function_or_method obj"),
    "a lambda": ('f = on("verified")(lambda v: None)', 4, "acme.<lambda>: is a lambda"),
    "above @staticmethod": (
        'class Crm(BaseSettings):\n    @on("verified")\n    @staticmethod\n    def f(v): ...',
        5,
        "@on stands above @staticmethod: write @staticmethod first and @on(...) below it",
    ),
    "a property": (
        'class Crm(BaseSettings):\n    @on("verified")\n    @property\n    def f(self): ...',
        5,
        "a property object is marked, not a function",
    ),
    "a decorator that makes an object": (
        'class task:\n    def __init__(self, f): ...\n@task\n@on("verified")\ndef f(v): ...',
        7,
        "a decorator above @on makes f a task object: write @on(...) as the topmost decorator",
    ),
    "a cache": (
        'import functools\n@functools.cache\n@on("verified")\ndef f(v): ...',
        6,
        "a decorator above @on makes f a _lru_cache_wrapper object",
    ),
    "a decorator that loses the mark": (
        'def bare(f):\n    return lambda v: f(v)\n@bare\n@on("verified")\ndef f(v): ...',
        7,
        "f is replaced by a function without the mark, by a later def or a decorator above @on",
    ),
    "two functions of one name": (
        '@on("verified")\ndef f(v): ...\n@on("canceled")\ndef f(v): ...',
        4,
        "f is replaced by another f on line 6: give each function a name of its own",
    ),
    "a later function without the mark": (
        '@on("verified")\ndef f(v): ...\ndef f(v): ...',
        4,
        "f is replaced by a function without the mark, by a later def",
    ),
    "deleted": ('@on("verified")\ndef f(v): ...\ndel f', 4, "the module has no f any more"),
    "marked twice": (
        '@on("verified")\n@on("canceled")\ndef f(v): ...',
        5,
        "f is marked twice: write one @on(...) that names all events",
    ),
    "inside a function": (
        'def setup():\n    @on("verified")\n    def f(v): ...\nsetup()',
        5,
        "f is defined inside a function: define it at the top of the module",
    ),
    "one function under two names": (
        '@on("verified")\ndef f(v): ...\ng = f',
        4,
        "acme.f: is the same function as acme.f",
    ),
    "no event": ("@on()\ndef f(v): ...", 4, "acme.f: names no event: one of created"),
    "a misspelt event": ('@on("verifed")\ndef f(v): ...', 4, "acme.f: unknown event 'verifed'"),
    "an event that is not text": ("@on(3)\ndef f(v): ...", 4, "acme.f: unknown event 3"),
    "a misspelt field": (
        '@on("verified", needs="verified_output.dob")\ndef f(v): ...',
        4,
        "acme.f: unknown field in needs 'verified_output.dob': perhaps 'verified_outputs.dob'",
    ),
    "a misspelt reason": (
        '@on("requires_input", reason="document_expird")\ndef f(v): ...',
        4,
        "acme.f: unknown reason 'document_expird': perhaps 'document_expired'",
    ),
    "a reason that hides other events": (
        '@on("requires_input", "verified", reason="abandoned")\ndef f(v): ...',
        4,
        "acme.f: reason= would hide its other events",
    ),
    "no reason among the reasons": (
        '@on("requires_input", reason=[])\ndef f(v): ...',
        4,
        "acme.f: reason= is empty, so that it would never run: leave it out for every reason",
    ),
    "a reason twice": (
        '@on("requires_input", reason=["abandoned", "abandoned"])\ndef f(v): ...',
        4,
        "acme.f: names the reason 'abandoned' twice",
    ),
    "a reason of another type": (
        '@on("requires_input", reason={"abandoned": 1})\ndef f(v): ...',
        4,
        "acme.f: unknown reason {'abandoned': 1}",
    ),
    "an event twice": (
        '@on("verified", "verified")\ndef f(v): ...',
        4,
        "acme.f: names the event 'verified' twice",
    ),
    "an event besides all": (
        '@on("*", "verified")\ndef f(v): ...',
        4,
        "acme.f: names '*', which is all of them, and others",
    ),
    "events as a list": ('@on(["verified"])\ndef f(v): ...', 4, "acme.f: unknown event ['verif"),
    "an empty list of events": ("@on([])\ndef f(v): ...", 4, "acme.f: unknown event []"),
    "a field twice": (
        '@on("verified", needs=["verified_outputs.dob", "verified_outputs.dob"])\ndef f(v): ...',
        4,
        "acme.f: names the field in needs 'verified_outputs.dob' twice",
    ),
    "a field of another type": (
        '@on("verified", needs=b"verified_outputs.dob")\ndef f(v): ...',
        4,
        "acme.f: unknown field in needs b'verified_outputs.dob'",
    ),
    "no field but nothing": ('@on("*", needs=None)\ndef f(v): ...', 4, "acme.f: unknown field in"),
    "a reason without its event": (
        '@on("verified", reason="abandoned")\ndef f(v): ...',
        4,
        "acme.f: reason= filters requires_input events",
    ),
    "no number of retries": ('@on("*", retries="3")\ndef f(v): ...', 4, "acme.f: retries= must"),
    "no time": ('@on("*", timeout="60 s")\ndef f(v): ...', 4, "acme.f: timeout= must be a number"),
    "truth as text": ('@on("*", own_process="no")\ndef f(v): ...', 4, "acme.f: own_process= must"),
    "async": ('@on("*")\nasync def f(v): ...', 4, "acme.f: is async"),
    "a generator": ('@on("*")\ndef f(v): yield', 4, "acme.f: is a generator"),
    "no argument": ('@on("*")\ndef f(): ...', 4, "acme.f: must take one argument"),
    "two arguments": ('@on("*")\ndef f(v, db): ...', 4, "acme.f: must take one argument"),
    "an unknown word": (
        '@on("*", retry=3)\ndef f(v): ...',
        4,
        "cannot be imported: TypeError: on() got an unexpected keyword argument 'retry'",
    ),
    "a fault in the module": ("import nowhere", 4, "cannot be imported: ModuleNotFoundError: No"),
    "a fault in its syntax": ("def f(v) ...", 4, "cannot be imported: SyntaxError: expected ':'"),
    "settings built at import, with a secret": (
        f"class Crm(BaseSettings):\n    token: int\nsettings = Crm(token='{SECRET}')",
        0,
        "setting TOKEN: Input should be a valid integer",
    ),
    "a secret in an error": (
        f"import os\nos.environ['ACME_TOKEN'] = '{SECRET}'\nraise ValueError('bad: {SECRET}')",
        6,
        "cannot be imported: ValueError: bad: ***",
    ),
    "settings that do not fit together": (
        "from pydantic import model_validator\n"
        "class Crm(BaseSettings):\n"
        "    model_config = {'env_prefix': 'crm_'}\n    token: str\n"
        "    @model_validator(mode='after')\n"
        "    def check(self): raise ValueError(f'{self.token} is not for this url')\n"
        "    @on('verified')\n    def f(self, v): ...",
        0,
        "settings Crm: Value error, *** is not for this url",
    ),
    "a setting under an alias": (
        "from pydantic import Field\n"
        "class Crm(BaseSettings):\n"
        "    model_config = {'env_prefix': 'crm_'}\n"
        "    url: str = Field(validation_alias='accounts_url')\n"
        "    @on('verified')\n    def f(self, v): ...",
        0,
        "setting ACCOUNTS_URL: Field required",
    ),
    "a setting in a setting": (
        "from pydantic import BaseModel\n"
        "class Db(BaseModel):\n    port: int\n"
        "class Crm(BaseSettings):\n"
        "    model_config = {'env_prefix': 'crm_', 'env_nested_delimiter': '__'}\n"
        "    db: Db = {'port': 'x'}\n"
        "    model_config['validate_default'] = True\n"
        "    @on('verified')\n    def f(self, v): ...",
        0,
        "setting CRM_DB__PORT: Input should be a valid integer",
    ),
    "a thread at import": (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[1], name='pump', daemon=True).start()\n"
        "@on('verified')\ndef f(v): ...",
        0,
        "starts the thread 'pump' when it is imported, which the process that runs handlers would",
    ),
    "a connection at import": (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "database = socket.create_connection(server.getsockname())\n"
        "@on('verified')\ndef f(v): ...",
        0,
        "opens a connection to 127.0.0.1:",
    ),
    **{
        f"at import: {what}": (
            f"import signal\n{statement}\n@on('verified')\ndef f(v): ...",
            0,
            f"{what} when it is imported, which the worker does itself: take that out, and mark",
        )
        for what, statement in {
            "sets what is done about SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
            "sets what is done about SIGINT": "signal.signal(signal.SIGINT, lambda *_: None)",
            "sets what is done about SIGPIPE": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
            "sets what is done about SIGCHLD": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
            "blocks SIGTERM": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})",
        }.items()
    },
    "a start that wants something": (
        "from identity_webhooks import on_start\n@on_start\ndef f(v): ...\n@on('*')\ndef g(v): ...",
        5,
        "acme.f: must take no argument",
    ),
    "an async start": (
        "from identity_webhooks import on_start\n@on_start\nasync def f(): ...\n"
        "@on('*')\ndef g(v): ...",
        5,
        "acme.f: is async",
    ),
    "an end that takes nothing": (
        "from identity_webhooks import on_dead\n@on_dead\ndef f(): ...\n@on('*')\ndef g(v): ...",
        5,
        "acme.f: must take one argument, the Dead",
    ),
    "a hook in a plain class": (
        "from identity_webhooks import on_stop\nclass Crm:\n    @on_stop\n    def f(self): ...\n"
        "@on('*')\ndef g(v): ...",
        6,
        "f is a method of the class Crm, which no plugin holds",
    ),
    "nothing at all": ("", 0, "holds no handler: mark a function with @on(...)"),
}
HEAD = "from identity_webhooks import on\nfrom pydantic_settings import BaseSettings\n\n"
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules into a folder that Python imports from."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("ACME_TOKEN", raising=False)
    monkeypatch.setenv("CRM_TOKEN", SECRET)

    def write(**modules: str) -> None:
        for name, source in modules.items():
            path = tmp_path / f"{re.sub('__(?!init|$)', '/', name)}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(source), encoding="utf-8")
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(*handlers: str) -> list[str]:
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load(Settings(handlers=handlers))
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize(("source", "line", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("beside", ["", '\n@on("verified")\ndef other(v): ...\n'])
def test_each_is_refused_with_file_and_line(source, line, words, beside, write, tmp_path) -> None:
    if not source and beside:
        pytest.skip("then it is no mistake")
    write(acme=HEAD + source + "\n" + beside)
    (said,) = refusal("acme")
    assert said.startswith(f"HANDLERS acme: {words}")
    assert said.endswith(f"({tmp_path}/acme.py:{line})") == bool(line)
    assert SECRET not in said


def test_all_faults_of_all_plugins_come_at_once(write) -> None:
    table = {f"acme{number}": case for number, case in enumerate(REFUSED.values())}
    write(**{name: HEAD + source + "\n" for name, (source, _, _) in table.items()})
    said = refusal(*table)
    assert len(said) == len(table) >= 25
    for name, (_, _, words) in table.items():
        expected = f"HANDLERS {name}: {words}".replace("acme.", f"{name}.")
        assert any(line.startswith(expected) for line in said), expected


class TestTwoDoors:
    ONE = HEAD + '@on("verified")\ndef f(v): ...\n'

    def test_a_function_named_twice(self, write, tmp_path) -> None:
        write(acme=self.ONE)
        (said,) = refusal("acme", "acme")
        where = f"({tmp_path}/acme.py:4)"
        same = "is the same function as acme.f (HANDLERS acme): name it once"
        assert said == f"HANDLERS acme: acme.f: {same} {where}"

    def test_a_file_under_two_module_names(self, write, tmp_path, monkeypatch) -> None:
        write(shop__acme=self.ONE)
        monkeypatch.syspath_prepend(str(tmp_path / "shop"))
        (said,) = refusal("shop.acme", "acme")
        assert "is the same function as acme.f (HANDLERS shop.acme)" in said

    def test_a_settings_class_and_its_module(self, write) -> None:
        source = 'class Crm(BaseSettings):\n    @on("verified")\n    def f(self, v): ...\n'
        write(acme=HEAD + source)
        (said,) = refusal("acme", "acme:Crm")
        assert "Crm.f: is the same function as acme.f (HANDLERS acme)" in said

    def test_two_objects_of_one_class_are_two_handlers(self, write) -> None:
        source = 'class Crm:\n    @on("verified")\n    def f(self, v): ...\na, b = Crm(), Crm()\n'
        write(acme=HEAD + source)
        names = [h.name for h in plugins.load(Settings(handlers=("acme:a", "acme:b"))).handlers]
        assert names[-2:] == ["a.f", "b.f"]

    def test_a_factory_of_handlers_makes_different_ones(self, write) -> None:
        factory = 'def make():\n    @on("verified")\n    def f(v): ...\n    return f\n'
        write(
            factory=HEAD + factory,
            one="import factory\nf = factory.make()\nf.__module__ = __name__\n",
            two="import factory\nf = factory.make()\nf.__module__ = __name__\n",
        )
        names = [h.name for h in plugins.load(Settings(handlers=("one", "two"))).handlers]
        assert names[-2:] == ["one.f", "two.f"]


class TestElsewhere:
    def test_a_handler_imported_from_a_module_that_no_plugin_names(self, write, tmp_path) -> None:
        write(
            common=TestTwoDoors.ONE, acme=HEAD + 'from common import f\n@on("*")\ndef g(v): ...\n'
        )
        (said,) = refusal("acme")
        assert said == (
            "HANDLERS acme: f belongs to the module common, which no plugin names:"
            f" add common to HANDLERS ({tmp_path}/common.py:4)"
        )
        plugins.load(Settings(handlers=("acme", "common")))

    def test_a_function_instead_of_its_module(self, write) -> None:
        write(acme=TestTwoDoors.ONE)
        said = refusal("acme:f")
        assert said[0] == "HANDLERS acme:f: is a function: name its module, acme"

    def test_a_module_that_fails_hides_no_fault_of_another(self, write) -> None:
        write(acme=TestTwoDoors.ONE + "import nowhere\n", other=HEAD + "@on\ndef f(v): ...\n")
        assert [line.split(": ")[0] for line in refusal("acme", "other")] == [
            "HANDLERS acme",
            "HANDLERS other",
        ]


class TestSubmodules:
    """Of a package, that nobody imports: their `on` never runs."""

    MARKING = HEAD + '@on("verified")\ndef f(v): ...\n'

    def refused(self, write: Write, **modules: str) -> list[str]:
        write(**{"acme____init__": self.MARKING, **modules})
        return refusal("acme")

    @pytest.mark.parametrize(
        ("source", "line"),
        [
            (MARKING, 4),
            ("import identity_webhooks as iw\n\n@iw.on('verified')\ndef f(v): ...", 3),
            ("from identity_webhooks import on as when\n@when('verified')\ndef f(v): ...", 2),
            ("from workers import on\nclass Crm:\n    @on('verified')\n    def f(self, v): ...", 3),
            ("from identity_webhooks import on_dead\n@on_dead\ndef f(dead): ...", 2),
            ("def g():\n    from identity_webhooks import on\n    @on('*')\n    def f(v): ...", 3),
        ],
    )
    def test_each_is_refused_with_file_and_line(self, source, line, write, tmp_path) -> None:
        (said,) = self.refused(write, acme__refunds=source)
        assert said == (
            "HANDLERS acme: acme.refunds marks a function, and nothing imports it: name it, too,"
            f" in HANDLERS or by an entry point ({tmp_path}/acme/refunds.py:{line})"
        )

    def test_deep_ones_too_and_none_is_run(self, write) -> None:
        said = self.refused(
            write,
            acme__deep____init__="raise SystemExit\n",
            acme__deep__er____init__="raise SystemExit\n",
            acme__deep__er__refunds=self.MARKING + "raise SystemExit\n",
        )
        assert [line.split(" marks ")[0] for line in said] == [
            "HANDLERS acme: acme.deep.er.refunds"
        ]

    @pytest.mark.parametrize(
        ("name", "source"),
        [
            ("acme__refunds", "def on(*_): ...\n@on\ndef f(v): ..."),
            ("acme__refunds", "from identity_webhooks import on\n"),
            ("acme__refunds", "from identity_webhooks import on\ndef f(v) ...\n"),
            ("acme__refunds", "from .identity_webhooks import on\n@on\ndef f(v): ..."),
            ("acme__test_refunds", MARKING),
            ("acme__tests____init__", MARKING),
            ("acme__conftest", MARKING),
        ],
    )
    def test_what_marks_nothing_of_ours_and_tests_are_let_be(self, name, source, write) -> None:
        write(**{"acme____init__": self.MARKING, name: source})
        assert plugins.load(Settings(audit=False, handlers=("acme",))).handlers

    def test_one_that_is_named_itself_is_collected(self, write) -> None:
        write(acme____init__=self.MARKING, acme__refunds=self.MARKING)
        router = plugins.load(Settings(audit=False, handlers=("acme", "acme.refunds")))
        assert [handler.name for handler in router.handlers] == ["acme.f", "refunds.f"]


class TestSettingsOfOneName:
    def test_the_variable_is_that_of_the_class_that_failed(self, write, monkeypatch) -> None:
        """Another class of this name is newer, with other fields."""
        crm = "class Crm(BaseSettings):\n    model_config = {{'env_prefix': '{0}'}}\n    {1}: str\n"
        other = HEAD + crm.format("two_", "token")
        write(two=other, one=HEAD + crm.format("one_", "url") + "import two\nCrm()\n")
        assert refusal("one") == ["HANDLERS one: setting ONE_URL: Field required"]


async def coroutine() -> None: ...


class Closed(Retry):
    delay = "soon"

    def __init__(self) -> None: ...


def raising(make: Callable[[], BaseException]) -> Callable[[Verification], Any]:
    def handle(v: Verification) -> None:
        raise make()

    return handle


def returning(make: Callable[[], object]) -> Callable[[Verification], Any]:
    def handle(v: Verification) -> object:
        return make()

    return handle


class Manager:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def using(use: Callable[[Verification], object]) -> Callable[[Verification], Any]:
    def handle(v: Verification) -> None:
        use(v)

    return handle


def effect(_: object) -> None: ...


def enters(v: Verification) -> None:
    with v.once("default"):  # type: ignore[attr-defined]
        pass


def asks(v: Verification) -> None:
    if v.once("default"):
        effect(v)


def loops(v: Verification) -> None:
    for _ in v.once("default"):  # type: ignore[attr-defined]
        pass


def swallows(v: Verification) -> None:
    with suppress(Retry):
        raise Retry("later")


DATABASE = create_engine("sqlite://", poolclass=StaticPool)
create_table(DATABASE)


def twice(v: Verification) -> None:
    v.once(DATABASE)(effect)
    v.once(DATABASE)(effect)


NOT_RUN = "failed: v.once(...) has run nothing: write @v.once(engine) above a function that takes a"
NO_DATABASE = "failed: v.once takes an engine, a connection or a session of SQLAlchemy, or a connec"
NO_MANAGER = "failed: v.once is no context manager, and tells nothing by itself: write @v.once(engi"
LOOKED_AT = "which nobody looks at: return None, and raise Retry or Discard if it is not done"
NOTHING_RAN = "and nothing of it ran: write a plain function that returns None"
FAILS: dict[str, tuple[Callable[[Verification], Any], str, str]] = {
    "a coroutine comes back": (
        returning(coroutine),
        "retry",
        f"failed: returned a coroutine, {NOTHING_RAN}",
    ),
    "a generator comes back": (
        returning(lambda: (n for n in [1])),
        "retry",
        f"failed: returned a generator, {NOTHING_RAN}",
    ),
    "a lazy map comes back": (
        returning(lambda: map(print, [1])),
        "retry",
        f"failed: returned a map, {NOTHING_RAN}",
    ),
    "a future comes back": (
        returning(concurrent.futures.Future),
        "retry",
        f"failed: returned a Future, {LOOKED_AT}",
    ),
    "a context manager comes back": (
        returning(Manager),
        "retry",
        f"failed: returned a Manager, {LOOKED_AT}",
    ),
    **{
        f"{value!r} comes back": (
            returning(lambda value=value: value),  # type: ignore[misc]
            "retry",
            f"failed: returned a {type(value).__name__}, {LOOKED_AT}",
        )
        for value in (False, True, 0, "", "ok", (), ("retry", 30), [], {})
    },
    "a function comes back": (
        returning(lambda: effect),
        "retry",
        f"failed: returned a function, {LOOKED_AT}",
    ),
    "Retry is made and not raised": (
        using(lambda _: Retry("later")),
        "retry",
        "failed: made Retry(...) and did not raise it: write raise Retry(...)",
    ),
    "Discard is made and not raised": (
        using(lambda _: Discard("gone")),
        "retry",
        "failed: made Discard(...) and did not raise it: write raise Discard(...)",
    ),
    "one's own Retry is made and not raised": (
        using(lambda _: Closed()),
        "retry",
        "failed: made Closed(...) and did not raise it: write raise Closed(...)",
    ),
    "once without parentheses": (using(lambda v: v.once(effect)), "retry", NO_DATABASE),
    "once of a url": (using(lambda v: v.once(("sqlite://",))), "retry", NO_DATABASE),
    "once that decorates nothing": (using(lambda v: v.once("default")), "retry", NOT_RUN),
    "once that is entered": (enters, "retry", NO_MANAGER),
    "once that is asked": (asks, "retry", NO_MANAGER),
    "once that is gone through": (loops, "retry", NO_MANAGER),
    "once of what a function returned": (
        using(lambda v: v.once(DATABASE)(effect(v))),  # type: ignore[func-returns-value]
        "retry",
        "failed: v.once was given a NoneType to run: write @v.once(engine) above a function",
    ),
    "once of an async function": (
        using(lambda v: v.once(DATABASE)(lambda db: coroutine())),  # type: ignore[arg-type]
        "retry",
        f"failed: the function below v.once returned a coroutine, {NOTHING_RAN}",
    ),
    "once of a function that returns something": (
        using(lambda v: v.once(DATABASE)(lambda db: db)),  # type: ignore[arg-type, return-value]
        "retry",
        f"failed: the function below v.once returned a Connection, {LOOKED_AT}",
    ),
    "once twice": (
        twice,
        "retry",
        "failed: v.once was used before in this run with the same name, so that this effect would",
    ),
    "once with a name that is none": (
        using(lambda v: v.once(DATABASE, "my invoice")),
        "retry",
        "failed: the name of a v.once is up to 100 letters, digits, dots and dashes, such as",
    ),
    "an outcome as a text": (
        using(lambda v: v.outcome == "verified"),  # type: ignore[comparison-overlap]
        "retry",
        "failed: v.outcome is no text: write v.outcome.kind == 'verified'",
    ),
    "Retry comes back": (
        returning(lambda: Retry("later")),
        "retry",
        "failed: returned Retry: write raise Retry(...)",
    ),
    "Discard itself comes back": (
        returning(lambda: Discard),
        "retry",
        "failed: returned Discard: write raise Discard(...)",
    ),
    "a bare Retry": (raising(Retry), "retry", 'retry: no reason given: write Retry("why")'),
    "Retry with a delay alone": (
        raising(lambda: Retry(delay=30)),
        "retry",
        'retry: no reason given: write Retry("why")',
    ),
    "a delay as text": (
        raising(lambda: Retry("closed", delay="30s")),
        "retry",
        "retry: closed (delay= is a str, not a number of seconds: write delay=30)",
    ),
    "a delay of its class that is text": (
        raising(Closed),
        "retry",
        "retry: delay= is a str, not a number of seconds: write delay=30",
    ),
    "a delay of a week": (
        raising(lambda: Retry("closed", delay=7 * 86_400)),
        "retry",
        "retry: closed (delay=604800 is cut to the longest, 259200 s (3 days))",
    ),
    "a timedelta of a week": (
        raising(lambda: Retry("closed", delay=timedelta(days=7))),
        "retry",
        "retry: closed (delay=604800.0 is cut to the longest",
    ),
    "a negative delay": (
        raising(lambda: Retry("closed", delay=-1)),
        "retry",
        "retry: closed (delay=-1 must be 0 or more)",
    ),
    "a delay by position": (
        raising(lambda: Retry("closed", 30)),
        "retry",
        'retry: closed (too much was given: write Retry("why", delay=30))',
    ),
    "a delay by another name": (
        raising(lambda: Retry("closed", seconds=30)),
        "retry",
        'retry: closed (too much was given: write Retry("why", delay=30))',
    ),
    "a bare Discard": (raising(Discard), "dead", 'discarded: no reason given: write Discard("wh'),
    "a Discard with a delay": (
        raising(lambda: Discard("gone", delay=3)),
        "dead",
        'discarded: gone (too much was given: write Discard("why"))',
    ),
}


@pytest.mark.parametrize(("function", "status", "words"), FAILS.values(), ids=FAILS)
@pytest.mark.filterwarnings("error")  # no coroutine is left that was never awaited
def test_each_fails_in_words(function, status, words, desk) -> None:
    handle = on("verified")(function)
    handle.__name__ = "handle"
    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.turn(desk.processor(handle))
    progress = desk.record(event).handlers["p.handle"]
    assert (progress.status, progress.attempts) == (status, 1)
    assert progress.reason.startswith(words)
    (logged,) = desk.logged("handler_failed")
    assert logged["reason"] == progress.reason


def test_what_is_right_is_done(desk) -> None:
    """An answer that is raised and caught, and effects that have names."""
    with DATABASE.begin() as db:
        db.execute(text(f"DELETE FROM {TABLE}"))  # noqa: S608

    @on("verified")
    def handle(v: Verification) -> None:
        swallows(v)
        for name in ("", "invoice", "mail"):
            assert v.once(DATABASE, name)(effect) is True

    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.turn(desk.processor(handle))
    progress = desk.record(event).handlers["p.handle"]
    assert (progress.status, progress.reason) == ("done", "")
    with DATABASE.connect() as db:
        keys = db.scalars(text(f"SELECT idempotency_key FROM {TABLE}")).all()  # noqa: S608
    prefix = f"{event.key}:p.handle"
    assert sorted(keys) == [prefix, f"{prefix}:invoice", f"{prefix}:mail"]


def test_an_effect_that_failed_may_be_tried_again_in_the_same_run(desk) -> None:
    calls = []

    def fails_first(_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError

    @on("verified")
    def handle(v: Verification) -> None:
        with suppress(LookupError):
            v.once(DATABASE, "again")(fails_first)
        assert v.once(DATABASE, "again")(fails_first) is True

    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.turn(desk.processor(handle))
    assert desk.record(event).handlers["p.handle"].status == "done"
    assert len(calls) == 2


def test_a_timedelta_is_a_delay(desk) -> None:
    handle = on("verified")(raising(lambda: Retry("closed", delay=timedelta(minutes=2))))
    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.turn(desk.processor(handle))
    assert 110 < desk.wait(event) <= 120
    assert desk.record(event).handlers["p.handle"].reason == "retry: closed"
