"""What our classes override in gunicorn and RQ is still there, and still called.

Nothing fails when a library renames a method: Python then never calls the override, and what it was
for does not happen.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import gunicorn
import pytest
import rq
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config

from service.logs import GunicornLogger
from service.server.worker import LoopWorker
from service.settings import Settings
from tests.conftest import ROOT, Server
from workers.pool import Threads
from workers.rq_worker import rq_worker
from workers.stop import Stop

OWN = {"LoopWorker._serve"}
"""What is no override."""

ASKED_FOR = {"LoopWorker.check_config"}
"""What gunicorn calls where a class has it; the base class has none."""


CLASSES = ("GunicornLogger", "InboxQueue", "LoopWorker", "ThreadedWorker")


@pytest.fixture
def overriding(server: Server) -> dict[str, tuple[type, ModuleType]]:
    """Our classes that derive from one of a library's, and the library."""
    settings = Settings(redis_url=server.url)
    worker = rq_worker(settings, object.__new__(Threads), object.__new__(Stop))
    return {
        "LoopWorker": (LoopWorker, gunicorn),
        "GunicornLogger": (GunicornLogger, gunicorn),
        "ThreadedWorker": (type(worker), rq),
        "InboxQueue": (worker.queue_class, rq),
    }


def overridden(ours: type) -> list[str]:
    """Return the names in the body of a class, less what Python itself puts there."""
    return [name for name in vars(ours) if not re.fullmatch(r"__\w+__|_abc_impl", name)]


def test_all_of_ours_are_looked_at() -> None:
    text = "".join(
        path.read_text(encoding="utf-8")
        for package in ("service", "workers")
        for path in (ROOT / package).rglob("*.py")
    )
    theirs = re.findall(
        r"^ *class (\w+)\((?:Worker|SimpleWorker|Queue|_GunicornBase)\)", text, re.MULTILINE
    )
    assert sorted(theirs) == sorted(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_library_has_what_it_overrides_and_uses_it(overriding, name: str) -> None:
    ours, library = overriding[name]
    folder = Path(inspect.getfile(library)).parent
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))
    names = overridden(ours)
    assert names
    for member in names:
        place = f"{name}.{member}"
        if place in OWN:
            assert not hasattr(ours.__base__, member), f"{place} overrides something by chance"
            continue
        if place not in ASKED_FOR:
            assert hasattr(ours.__base__, member), f"{place} overrides nothing"
        assert re.search(rf"\.{member}\b", source), f"nothing in {library.__name__} uses {place}"


def test_gunicorn_knows_every_setting_of_ours() -> None:
    """It leaves out those that it does not know, and says nothing."""
    tree = ast.parse((ROOT / "deploy/gunicorn.conf.py").read_text(encoding="utf-8"))
    ours = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and not target.id.startswith("_")
    }
    assert {"workers", "worker_class", "control_socket_disable"} <= ours
    assert ours <= set(Config().settings)


def test_gunicorn_stops_where_the_app_exits_as_it_does() -> None:
    assert Arbiter.WORKER_BOOT_ERROR == 3
