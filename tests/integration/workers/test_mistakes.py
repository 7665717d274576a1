"""Mistakes that authors of handlers make: each is refused, or fails, with what to do, none silent.

The first table is refused when plugins are loaded, with file and line; the second fails when the
handler runs, in words that stand in the log and in the event's record.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import re
import socket
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

from identity_webhooks import Discard, Retry, Verification, on
from identity_webhooks.handlers import MARKS
from identity_webhooks.once import TABLE, create_table
from identity_webhooks.testing import verification
from service.settings import Settings
from tests.logs import lines_of, logging_to
from workers import plugins
from workers.held import Held
from workers.hooks import Hooks
from workers.router import Failed

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
    "a misspelt event": (
        '@on("verifed")\ndef f(v): ...',
        4,
        "acme.f: unknown event 'verifed': perhaps",
    ),
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
    "events as a list": (
        '@on(["verified"])\ndef f(v): ...',
        4,
        'acme.f: takes events one by one, not a list of them: write @on("verified", "canceled") (',
    ),
    "an empty list of events": ("@on([])\ndef f(v): ...", 4, "acme.f: takes events one by one"),
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
        "acme.f: reason= filters requires_input events, which it does not subscribe to: write @on",
    ),
    "no number of retries": ('@on("*", retries="3")\ndef f(v): ...', 4, "acme.f: retries= must"),
    "no time": ('@on("*", timeout="60 s")\ndef f(v): ...', 4, "acme.f: timeout= must be a number"),
    "truth as text": ('@on("*", own_process="no")\ndef f(v): ...', 4, "acme.f: own_process= must"),
    "async": ('@on("*")\nasync def f(v): ...', 4, "acme.f: is async"),
    "a generator": ('@on("*")\ndef f(v): yield', 4, "acme.f: is a generator"),
    "no argument": (
        '@on("*")\ndef f(): ...',
        4,
        "acme.f: must take one argument, the Verification, and takes (): write def f(v: Verificat",
    ),
    "two arguments": (
        '@on("*")\ndef f(v, db): ...',
        4,
        "acme.f: must take one argument, the Verification, and takes (v, db): write def f(v: Veri",
    ),
    "a method without an argument": (
        'class Crm(BaseSettings):\n    @on("*")\n    def f(self): ...',
        5,
        "acme.f: must take one argument, the Verification, and takes (): write def f(self, v: Ver",
    ),
    "an unknown word": (
        '@on("*", retry=3)\ndef f(v): ...',
        4,
        "cannot be imported: TypeError: on() got an unexpected keyword argument 'retry'",
    ),
    "a fault in the module": (
        "import nowhere",
        4,
        "cannot be imported: ModuleNotFoundError: No module named 'nowhere': install what holds no",
    ),
    "a fault in its syntax": ("def f(v) ...", 4, "cannot be imported: SyntaxError: expected ':'"),
    "settings built at import, with a secret": (
        f"class Crm(BaseSettings):\n    token: int\nsettings = Crm(token='{SECRET}')",
        6,
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
        5,
        "settings Crm: Value error, *** is not for this url",
    ),
    "a setting under an alias": (
        "from pydantic import Field\n"
        "class Crm(BaseSettings):\n"
        "    model_config = {'env_prefix': 'crm_'}\n"
        "    url: str = Field(validation_alias='accounts_url')\n"
        "    @on('verified')\n    def f(self, v): ...",
        5,
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
        7,
        "setting CRM_DB__PORT: Input should be a valid integer",
    ),
    "a thread at import": (
        "import threading\nend = threading.Event()\n"
        "threading.Thread(target=end.wait, args=[120], name='pump', daemon=True).start()\n"
        "@on('verified')\ndef f(v): ...",
        0,
        "starts the thread 'pump' when it is imported, which the process that runs handlers would",
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
        if str(tmp_path) in str(sys.modules[name].__spec__):  # a library is not loaded twice
            module = vars(sys.modules.pop(name))
            if end := module.get("end"):  # of a thread that it started
                end.set()


@pytest.fixture
def told(tmp_path) -> Iterator[Callable[[], list[str]]]:
    """Return what the log says of files that were not loaded."""
    path = tmp_path / "plugins.log"

    def told() -> list[str]:
        return [said for line in lines_of(path, "handlers_not_loaded") for said in line["faults"]]

    with logging_to(path):
        yield told


def refusal(*handlers: str) -> list[str]:
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load(Settings(handlers=handlers))
    return str(caught.value).splitlines()[1:]


def only_refusal(*handlers: str) -> str:
    """Return the one fault that is told; all are shown where there are more."""
    said = refusal(*handlers)
    assert len(said) == 1, said
    return said[0]


@pytest.mark.sample(65)
@pytest.mark.parametrize(("source", "line", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("beside", ["", '\n@on("verified")\ndef other(v): ...\n'])
def test_each_is_refused_with_file_and_line(source, line, words, beside, write, tmp_path) -> None:
    if not source and beside:
        pytest.skip("then it is no mistake")
    write(acme=HEAD + source + "\n" + beside)
    said = only_refusal("acme")
    assert said.startswith(f"HANDLERS acme: {words}")
    assert said.endswith(f"({tmp_path}/acme.py:{line})") == bool(line)
    assert SECRET not in said


@pytest.mark.walk
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
        said = only_refusal("acme", "acme")
        where = f"({tmp_path}/acme.py:4)"
        same = "is the same function as acme.f (HANDLERS acme): name it once"
        assert said == f"HANDLERS acme: acme.f: {same} {where}"

    def test_a_file_under_two_module_names(self, write, tmp_path, monkeypatch) -> None:
        write(shop__acme=self.ONE)
        monkeypatch.syspath_prepend(str(tmp_path / "shop"))
        said = only_refusal("shop.acme", "acme")
        assert "is the same function as acme.f (HANDLERS shop.acme)" in said

    def test_a_settings_class_and_its_module(self, write) -> None:
        source = 'class Crm(BaseSettings):\n    @on("verified")\n    def f(self, v): ...\n'
        write(acme=HEAD + source)
        said = only_refusal("acme", "acme:Crm")
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
        said = only_refusal("acme")
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

    SPELLINGS: ClassVar = {
        "by name": (MARKING, 4),
        "the module": ("import identity_webhooks as iw\n\n@iw.on('verified')\ndef f(v): ...", 3),
        "a module in it": (
            "import identity_webhooks.handlers\n"
            "@identity_webhooks.handlers.on('verified')\ndef f(v): ...",
            2,
        ),
        "a module of it": (
            "from identity_webhooks import handlers as h\n@h.on('verified')\ndef f(v): ...",
            2,
        ),
        "from where it is defined": (
            "from identity_webhooks.handlers import on\n@on('verified')\ndef f(v): ...",
            2,
        ),
        "another name": (
            "from identity_webhooks import on as when\n@when('verified')\ndef f(v): ...",
            2,
        ),
        "a variable": (
            "import identity_webhooks as iw\nwhen = iw.on\n@when('*')\ndef f(v): ...",
            2,
        ),
        "all names": ("from identity_webhooks import *\n\n@on('*')\ndef f(v): ...", 3),
        "a call": ("from identity_webhooks import on\ndef f(v): ...\nf = on('*')(f)", 3),
        "calls in a loop": (
            "from identity_webhooks import on\nfor kind in ('verified',):\n    on(kind)(print)",
            3,
        ),
        "an argument": (
            "from identity_webhooks import on\nimport functools\nf = functools.partial(on, '*')",
            3,
        ),
        "the old name": (
            "from workers import on\nclass Crm:\n    @on('verified')\n    def f(self, v): ...",
            3,
        ),
        "a hook": ("from identity_webhooks import on_dead\n@on_dead\ndef f(dead): ...", 2),
        "in a function": (
            "def g():\n    from identity_webhooks import on\n    @on('*')\n    def f(v): ...",
            3,
        ),
        "in a try": (
            "try:\n    from identity_webhooks import on\nexcept ImportError:\n    raise\n"
            "@on('*')\ndef f(v): ...",
            5,
        ),
        "over lines": (
            "from identity_webhooks import (\n    on as when,\n)\n\n@when('*')\ndef f(v): .",
            0,
        ),
        "of another file": ("from .compat import when\n\n@when('*')\ndef f(v): ...", 3),
        "of another file, over lines": (
            "from .compat import (\n    # on which\n    when,\n)\n@when('*')\ndef f(v): ...",
            5,
        ),
        "of another file, over lines with a backslash": (
            "from .compat import \\\n    when\n\n@when('*')\ndef f(v): ...",
            4,
        ),
        "of another file, among others": (
            "from .compat import Verification, when as then\n@then('*')\ndef f(v): ...",
            2,
        ),
        "of all of another file": ("from acme.compat import *\n@when('*')\ndef f(v): ...", 2),
        "of another file, by module": (
            "import acme.compat\n@acme.compat.when('*')\ndef f(v): ...",
            2,
        ),
        "of the package": ("from . import on\n@on('*')\ndef f(v): ...", 2),
        "of a file of another file": ("from .again import then\n@then('*')\ndef f(v): ...", 2),
        "with a warning": (
            "from identity_webhooks import on\n@on('*')\ndef f(v): '\\d'",
            2,
        ),
    }

    @pytest.mark.sample(30)
    @pytest.mark.parametrize(("source", "line"), SPELLINGS.values(), ids=SPELLINGS)
    @pytest.mark.parametrize("module", ["refunds", "folder.refunds", "latest"])
    def test_each_is_refused_with_file_and_line(
        self, source, line, module, write, tmp_path
    ) -> None:
        if "from ." in source and "folder" in module:
            source = source.replace("from .", "from ..")
        compat = "from identity_webhooks import on as when\n"
        again = "from .compat import when as then\n"
        said, *others = self.refused(
            write,
            **{f"acme__{module.replace('.', '__')}": source},
            acme__compat=compat,
            acme__again=again,
        )
        assert not others
        path = f"{tmp_path}/acme/{module.replace('.', '/')}.py"
        said = said.removeprefix(f"HANDLERS acme: acme.{module} ")
        if line:
            words = (
                "marks a function, and nothing imports it: name it, too, in HANDLERS or by an entry"
                f" point ({path}:{line})"
            )
        else:
            words = (
                "names identity_webhooks, and cannot be read as Python (SyntaxError): mend it, or"
                f" take it out of the folder ({path}:6)"
            )
        assert said == words

    MARKS: ClassVar = ("on", "on_start", "on_stop", "on_dead")
    # module: (what it offers, its other names, the names of the package that it is in)
    HOLDERS: ClassVar = {
        "identity_webhooks": (MARKS, (), ()),
        "identity_webhooks.handlers": (MARKS, (), ("identity_webhooks",)),
        "workers": (("on",), (), ()),
        "acme.compat": (("when",), (".compat",), ("acme", ".")),
        "acme.deep.again": (("then",), (".deep.again",), ("acme.deep", ".deep")),
    }

    def imports(self, holder: str, word: str) -> Iterator[tuple[str, str, str]]:
        """Yield each way to import, what is a mark after it, and what is none."""
        _, names, packages = self.HOLDERS[holder]
        for name in (holder, *names):
            yield f"from {name} import {word}", word, f"{word}s"
            yield f"from {name} import {word} as x", "x", word
            yield f"from {name} import *", word, "x"
        yield f"import {holder}", f"{holder}.{word}", word
        yield f"import {holder} as x", f"x.{word}", f"{holder}.{word}"
        package, _, last = holder.rpartition(".")
        for name in packages:
            yield f"from {name} import {last}", f"{last}.{word}", f"x.{word}"
            yield f"from {name} import {last} as x", f"x.{word}", f"{last}.{word}"
            yield f"import {package} as x", f"x.{last}.{word}", f"{holder}.{word}"

    def test_however_a_file_calls_what_marks_it_is_known_by_that_name_alone(self, write) -> None:
        files = {
            "acme____init__": self.MARKING,
            "acme__compat": "from identity_webhooks import on as when\n",
            "acme__deep__again": "from ..compat import when as then\n",
        }
        marking, other = set(), set()
        for holder, (words, _, _) in self.HOLDERS.items():
            for word in words:
                for line, mark, none in self.imports(holder, word):
                    marking.add(f"{line}\n@{mark}\ndef f(v): ...\n")
                    other.add(f"{line}\n@{none}\ndef f(v): ...\n")
        files |= {f"acme__file{n}": each for n, each in enumerate(sorted(marking | other))}
        write(**files)
        refused = [line.partition("acme.")[2].partition(" marks")[0] for line in refusal("acme")]
        assert {files[f"acme__{name}"] for name in refused} == marking

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
        "source",
        [
            "def on(*_): ...\n@on\ndef f(v): ...",
            "from identity_webhooks import on\n",
            "from identity_webhooks import Verification\ndef f(v: Verification): ...",
            "import identity_webhooks\ndef f(v: identity_webhooks.Verification): ...",
            "import identity_webhooks, crm\n@crm.on('verified')\ndef f(v): ...",
            "from .identity_webhooks import on\n@on\ndef f(v): ...",
            "{{ a template }}",
            "from . import nothing\ndef f(v) ...",
        ],
    )
    def test_what_marks_nothing_of_ours_is_let_be(self, source, write, told) -> None:
        write(acme____init__=self.MARKING, acme__refunds=source)
        assert plugins.load(Settings(audit=False, handlers=("acme",))).handlers
        assert told() == []

    @pytest.mark.parametrize("end", ["of the file", "of a file that cannot be read"])
    @pytest.mark.parametrize(
        "module",
        ["test_refunds", "refunds_test", "tests.refunds", "test.deep.refunds", "conftest"],
    )
    def test_what_has_the_name_of_a_test_is_told(self, module, end, write, told) -> None:
        source = self.MARKING if end == "of the file" else self.MARKING + "def"
        write(**{"acme____init__": self.MARKING, f"acme__{module.replace('.', '__')}": source})
        assert plugins.load(Settings(audit=False, handlers=("acme",))).handlers
        (said,) = told()
        assert said.startswith(f"HANDLERS acme: acme.{module} ")

    @pytest.mark.parametrize("named", ["shop", "shop:crm", "acme.shop", "acme.shop:crm"])
    def test_files_beside_a_module_that_is_named_are_told(self, named, write, told) -> None:
        """They may be meant for another worker."""
        folder = "acme__" if "acme" in named else ""
        crm = "class Crm:\n    @on('*')\n    def g(self, v): ...\ncrm = Crm()\n"
        source = HEAD + crm if ":" in named else self.MARKING
        write(
            **{f"{folder}shop": source, f"{folder}refunds": self.MARKING},
            **{f"{folder}deep__other": self.MARKING},
        )
        assert plugins.load(Settings(audit=False, handlers=(named,))).handlers
        (said,) = told()
        module = "acme.refunds" if folder else "refunds"
        assert said.startswith(f"HANDLERS {named}: {module} marks a function, and nothing imports")

    def test_a_file_beside_two_modules_is_told_once(self, write, told) -> None:
        names = ("one", "two", "refunds")
        write(**{name: self.MARKING.replace("f(v)", f"{name}(v)") for name in names})
        plugins.load(Settings(audit=False, handlers=("one", "two")))
        (said,) = told()
        assert said.startswith("HANDLERS one: refunds marks a function, and nothing imports it")

    def test_files_beside_an_object_of_a_package_are_told_by_their_whole_name(
        self, write, told
    ) -> None:
        crm = "class Crm:\n    @on('*')\n    def g(self, v): ...\ncrm = Crm()\n"
        write(acme____init__=HEAD + crm, acme__refunds=self.MARKING)
        plugins.load(Settings(audit=False, handlers=("acme:crm",)))
        (said,) = told()
        assert said.startswith("HANDLERS acme:crm: acme.refunds marks a function, and nothing")

    def test_the_line_is_that_of_the_first_mark(self, write) -> None:
        source = (
            "from identity_webhooks import on\nclass Crm:\n    @on('*')\n    def f(self, v): ..."
        )
        said, *others = self.refused(write, acme__refunds=f"{source}\n@on('*')\ndef g(v): ...")
        assert not others
        assert said.endswith("/refunds.py:3)")

    def test_folders_that_python_does_not_import_from_are_let_be(
        self, write, told, tmp_path
    ) -> None:
        write(acme____init__=self.MARKING, elsewhere__refunds=self.MARKING)
        folder = tmp_path / "acme"
        (folder / "not-a-name").mkdir()
        (folder / "not-a-name/refunds.py").write_text(self.MARKING)
        (folder / "refunds.py").mkdir()
        (folder / "link").symlink_to(tmp_path / "elsewhere")
        (folder / "itself").symlink_to(folder)
        assert plugins.load(Settings(audit=False, handlers=("acme",))).handlers
        assert told() == []

    def test_a_file_in_a_zip(self, write, tmp_path, monkeypatch) -> None:
        with zipfile.ZipFile(tmp_path / "acme.zip", "w") as zipped:
            zipped.writestr("acme/__init__.py", self.MARKING)
            zipped.writestr("acme/refunds.py", self.MARKING)
        monkeypatch.syspath_prepend(str(tmp_path / "acme.zip"))
        said = only_refusal("acme")
        assert said.startswith("HANDLERS acme: acme.refunds marks a function")
        assert said.endswith(f"({tmp_path}/acme.zip/acme/refunds.py:4)")

    def test_one_that_cannot_be_imported_says_so_alone(self, write) -> None:
        write(acme____init__=self.MARKING, acme__refunds=self.MARKING + "import nowhere\n")
        said = only_refusal("acme", "acme.refunds")
        assert said.startswith("HANDLERS acme.refunds: cannot be imported: ModuleNotFoundError")

    def test_one_that_is_named_itself_is_collected(self, write) -> None:
        write(acme____init__=self.MARKING, acme__refunds=self.MARKING)
        router = plugins.load(Settings(audit=False, handlers=("acme", "acme.refunds")))
        assert [handler.name for handler in router.handlers] == ["acme.f", "refunds.f"]


CONNECTS: dict[str, tuple[str, str]] = {
    "socket": (
        "import socket\ndatabase = socket.create_connection(('127.0.0.1', {redis}))",
        "opens a connection to 127.0.0.1:{redis} ",
    ),
    "server": (
        "import socket\nserver = socket.create_server(('127.0.0.1', 0))",
        "opens a socket at 127.0.0.1:",
    ),
    "socket without an answer yet": (
        "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))",
        "opens a socket at 127.0.0.1:",
    ),
    "redis": (
        "import redis\nr = redis.Redis(port={redis})\nr.ping()",
        "opens a connection to 127.0.0.1:{redis} ",
    ),
    "http": (
        "import http.client\nc = http.client.HTTPConnection('127.0.0.1', {redis})\nc.connect()",
        "opens a connection to 127.0.0.1:{redis} ",
    ),
    "psycopg": (
        "import psycopg\ndb = psycopg.connect('postgresql://{postgres}')",
        "opens a connection to 127.0.0.1:",
    ),
    "engine": (
        "import sqlalchemy\n"
        "engine = sqlalchemy.create_engine('postgresql+psycopg://{postgres}')\n"
        "with engine.connect() as db:\n    db.execute(sqlalchemy.text('SELECT 1'))",
        "opens a connection to 127.0.0.1:",
    ),
    "sqlite": (
        "import sqlite3\ndb = sqlite3.connect('{folder}/shop.db')",
        "keeps the file {folder}/shop.db open for reading and writing, as a database is, ",
    ),
    "engine on sqlite": (
        "import sqlalchemy\nengine = sqlalchemy.create_engine('sqlite:///{folder}/shop.db')\n"
        "with engine.connect() as db:\n    db.execute(sqlalchemy.text('SELECT 1'))",
        "keeps the file {folder}/shop.db open for reading and writing, as a database is, ",
    ),
    "dbm": (
        "import dbm.dumb\ndb = open('{folder}/shop.db', 'w+b')",
        "keeps the file {folder}/shop.db open for reading and writing, as a database is, ",
    ),
    "thread without threading": (
        "import _thread, threading\nbegun, end = threading.Event(), threading.Event()\n"
        "_thread.start_new_thread(lambda: begun.set() or end.wait(120), ())\nbegun.wait()",
        "starts the thread without a name ",
    ),
}
LETS_BE = {
    "an engine that has not connected": (
        "import sqlalchemy\nengine = sqlalchemy.create_engine('sqlite:///{folder}/shop.db')"
    ),
    "a connection that is closed": (
        "import socket\nsocket.create_connection(('127.0.0.1', {redis})).close()"
    ),
    "a database that is closed": "import sqlite3\nsqlite3.connect('{folder}/shop.db').close()",
    "an engine that is disposed": (
        "import sqlalchemy\nengine = sqlalchemy.create_engine('sqlite:///{folder}/shop.db')\n"
        "with engine.connect() as db:\n    db.execute(sqlalchemy.text('SELECT 1'))\n"
        "engine.dispose()"
    ),
    "a file that is read": "table = open(__file__)\ntable.readline()",
    "a log": "import logging\nlog = logging.FileHandler('{folder}/shop.log')",
    "a thread that has ended": (
        "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()"
    ),
    "a socket that is not used": "import socket\ns = socket.socket()",
    "shared memory": "import multiprocessing\nvalue = multiprocessing.Value('i')",
    "a temporary file": "import tempfile\ntable = tempfile.TemporaryFile()",
    "a pair of sockets": "import socket\na, b = socket.socketpair()",
    "syslog": (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.connect(('127.0.0.1', 514))"
    ),
}


class TestOpened:
    """What is open when the module is imported would be shared with the process it is forked to."""

    HANDLER = "\n@on('verified')\ndef f(v): ...\n"

    @pytest.fixture
    def write_with(self, write, tmp_path, server) -> Iterator[Callable[[str, str], None]]:
        self.names = {"redis": server.port, "folder": tmp_path}

        def write_with(source: str, postgres: str = "") -> None:
            write(acme=HEAD + source.format(**self.names, postgres=postgres) + self.HANDLER)

        yield write_with
        module = vars(sys.modules["acme"])
        for name in ("s", "a", "b", "c", "r", "db", "database", "server", "table", "log", "engine"):
            if value := module.get(name):
                (getattr(value, "dispose", None) or value.close)()

    @pytest.mark.parametrize(("source", "words"), CONNECTS.values(), ids=CONNECTS)
    def test_is_refused(self, source, words, write_with, request) -> None:
        postgres = request.getfixturevalue("postgres") if "{postgres}" in source else ""
        write_with(source, postgres)
        said = only_refusal("acme")
        assert said.startswith(f"HANDLERS acme: {words.format(**self.names)}")
        assert re.sub(r" \(\S+:\d+\)$", "", said).endswith(
            "when it is imported, which the process that runs handlers would not have: do it in a"
            " function marked @on_start"
        )

    @pytest.mark.parametrize("source", LETS_BE.values(), ids=LETS_BE)
    def test_is_let_be(self, source, write_with) -> None:
        write_with(source)
        assert plugins.load(Settings(audit=False, handlers=("acme",))).handlers

    @pytest.mark.parametrize("meanwhile", ["it is cut", "it is connected"])
    def test_what_was_there_before_is_none_of_the_plugins(self, meanwhile) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as ours:
            if meanwhile == "it is connected":
                held = Held()
                ours.connect(listening.getsockname())
            else:
                ours.connect(listening.getsockname())
                theirs, _ = listening.accept()
                held = Held()
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                theirs.close()
                with pytest.raises(ConnectionResetError):
                    ours.recv(1)
            assert held.added() == []


# what is left: (how, and what is said)
LEFT = {
    "a thread": (
        "threading.Thread(target=end.wait, args=[120], name='pump', daemon=True).start()",
        "starts the thread 'pump'",
    ),
    "a connection": (
        "kept.append(socket.create_connection(('127.0.0.1', {redis})))",
        "opens a connection to 127.0.0.1:{redis}",
    ),
    "a server": (
        "kept.append(socket.create_server(('127.0.0.1', 0)))",
        "opens a socket at 127.0.0.1:",
    ),
    "a database": (
        "kept.append(open('{folder}/shop.db', 'w+b'))",
        "keeps the file {folder}/shop.db open",
    ),
    "a signal handler": (
        "signal.signal(signal.SIGTERM, lambda *_: None)",
        "sets what is done about SIGTERM",
    ),
    "a signal that is blocked": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})",
        "blocks SIGTERM",
    ),
}
LEAVING = "import signal, socket, threading\nkept, end = [], threading.Event()\ndef leave(): "
# when: (the source, what follows the name in HANDLERS)
MOMENTS = {
    "import": ("leave()\n{handler}", ""),
    "class_body": ("class Crm:\n    leave()\n{handler}", ""),
    "import_of_another": ("import another\n{handler}", ""),
    "default": (
        "from pydantic import Field\nclass Crm(BaseSettings):\n"
        "    a: None = Field(default_factory=leave)\n{method}",
        "",
    ),
    "validator": (
        "from pydantic import field_validator\nclass Crm(BaseSettings):\n    crm_token: str\n"
        "    @field_validator('crm_token')\n    def check(cls, value):\n"
        "        leave()\n        return value\n{method}",
        "",
    ),
    "validator_of_all": (
        "from pydantic import model_validator\nclass Crm(BaseSettings):\n"
        "    @model_validator(mode='after')\n    def check(self):\n"
        "        leave()\n        return self\n{method}",
        "",
    ),
    "after_settings": (
        "class Crm(BaseSettings):\n    def model_post_init(self, _): leave()\n{method}",
        "",
    ),
    "init_of_settings": (
        "class Crm(BaseSettings):\n    def __init__(self):\n"
        "        super().__init__()\n        leave()\n{method}",
        "",
    ),
    "init": ("class Crm:\n    def __init__(self): leave()\n{method}", ":Crm"),
    "init_of_an_object": (
        "class Crm:\n    def __init__(self): leave()\n{method}crm = Crm()\n",
        ":crm",
    ),
}
NOT_THEN = {
    "on_start": "from identity_webhooks import on_start\n@on_start\ndef g(): leave()\n{handler}",
    "handler": "@on('*')\ndef f(v): leave()\n",
    "nothing": "{handler}",
}


@pytest.mark.parametrize(("how", "words"), LEFT.values(), ids=LEFT)
def test_what_is_left_is_found_at_every_moment_of_loading(
    how, words, write, tmp_path, server
) -> None:
    """And of the plugin that left it alone, whatever is loaded before and after."""
    names = {"redis": server.port, "folder": tmp_path}
    head = HEAD + "from leaving import leave\n"
    method = "    @on('verified')\n    def f(self, v): ...\n"
    plugin = {"handler": "@on('verified')\ndef f(v): ...\n", "method": method}
    sources = {name: source for name, (source, _) in MOMENTS.items()} | NOT_THEN
    write(leaving=LEAVING + how.format(**names), another="from leaving import leave\nleave()\n")
    write(**{name: head + source.format(**plugin) for name, source in sources.items()})
    paths = [f"{name}{path}" for name, (_, path) in MOMENTS.items()]
    try:
        said = refusal("on_start", *paths, "handler", "nothing")
        assert [line.rpartition(": " + words.format(**names))[0] for line in said] == [
            f"HANDLERS {path}" for path in paths
        ]
    finally:
        for each in vars(sys.modules["leaving"])["kept"]:
            each.close()


class TestLate:
    """Marks that are made when the handlers are collected."""

    @pytest.fixture(autouse=True)
    def closed(self, monkeypatch) -> None:
        monkeypatch.setattr(MARKS, "closed", False)

    LATE = HEAD + '@on("verified")\ndef late(v): ...\n'
    SAID = (
        "marks a function when the handlers are collected already, and it would never run: name"
        " crm in HANDLERS or by an entry point"
    )

    def test_in_a_start_that_imports_them(self, write) -> None:
        start = "from identity_webhooks import on_start\n@on_start\ndef start(): import crm\n"
        write(crm=self.LATE, acme=HEAD + start + '@on("*")\ndef f(v): ...\n')
        router = plugins.load(Settings(audit=False, handlers=("acme",)))
        MARKS.closed = True
        with pytest.raises(Failed) as caught:
            Hooks(router).start()
        assert caught.value.reason == f"crm.py:4 {self.SAID}"

    @pytest.mark.parametrize("body", ["import crm", "on('*')", "@on('*')\n    def f(v): ..."])
    def test_in_a_handler(self, body, write) -> None:
        source = HEAD + f"@on('*')\ndef f(v):\n    {body}\n"
        write(crm=self.LATE, acme=source)
        router = plugins.load(Settings(audit=False, handlers=("acme",)))
        MARKS.closed = True
        with pytest.raises(Failed) as caught:
            router.handlers[0].run(verification())
        where = "crm.py:4" if "crm" in body else "acme.py:6"
        said = self.SAID if "crm" in body else self.SAID.replace("crm", "acme")
        assert caught.value.reason == f"acme.py:6: {where} {said}"


class TestSettingsOfOneName:
    def test_the_variable_is_that_of_the_class_that_failed(self, write, monkeypatch) -> None:
        """Another class of this name is newer, with other fields."""
        crm = "class Crm(BaseSettings):\n    model_config = {{'env_prefix': '{0}'}}\n    {1}: str\n"
        other = HEAD + crm.format("two_", "token")
        write(two=other, one=HEAD + crm.format("one_", "url") + "import two\nCrm()\n")
        said = only_refusal("one")
        assert said.startswith("HANDLERS one: setting ONE_URL: Field required")
        assert said.endswith("one.py:8)"), "where it is built"


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


@pytest.fixture(autouse=True)
def no_effect() -> None:
    """Forget what was done once: the events of another test have the same ids."""
    with DATABASE.begin() as db:
        db.execute(text(f"DELETE FROM {TABLE}"))  # noqa: S608


@pytest.mark.parametrize(("function", "status", "words"), FAILS.values(), ids=FAILS)
@pytest.mark.filterwarnings("error")  # no coroutine is left that was never awaited
def test_each_fails_in_words(function, status, words, desk) -> None:
    handle = on("verified")(function)
    handle.__name__ = "handle"
    event = desk.accept("verified", desk.sandbox.session("verified"))
    desk.turn(desk.processor(handle))
    progress = desk.record(event).handlers["p.handle"]
    assert (progress.status, progress.attempts) == (status, 1)
    # What is raised at once has a line.
    where = re.compile(r"(?<=failed: )test_mistakes\.py:\d+: ")
    assert where.sub("", progress.reason).startswith(words)
    has_line = words.startswith(("failed: v.o", "failed: the f", "failed: the n"))
    assert bool(where.search(progress.reason)) == (has_line and words != NOT_RUN)
    (logged,) = desk.logged("handler_failed")
    assert logged["reason"] == progress.reason


def test_what_is_right_is_done(desk) -> None:
    """An answer that is raised and caught, and effects that have names."""

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
    began = desk.now()
    desk.turn(desk.processor(handle))
    assert began + 120_000 <= desk.due(event) <= desk.now() + 120_000
    assert desk.record(event).handlers["p.handle"].reason == "retry: closed"
