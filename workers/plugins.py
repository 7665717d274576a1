"""Find plugins and build the router of this process.

Every plugin, built-in ones too, comes from one of three sources, loaded in this order:

1. files in `workers/handlers/`;
2. dotted paths in `HANDLERS`: `package.module` or `package.module:object`;
3. installed distributions: entry points of the group `identity_webhooks.handlers`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import cast
from urllib.parse import urlsplit

from pydantic import ValidationError

from identity_webhooks.handlers import MARKS, Mark
from service import logs
from service.settings import NO_FORWARD_SECRET, Settings
from workers import handlers as _built_in
from workers import import_faults, unimported
from workers.collecting import NO_HANDLER, why_not_collected
from workers.held import Held
from workers.router import BadPlugin, Router

log = logs.get(__name__)

GROUP = "identity_webhooks.handlers"
GROUP_LIKENESS = 0.85
"""Ratio of difflib from which on another group counts as a misspelt one of ours."""


class PluginError(Exception):
    """Plugins that cannot be used. The text lists every fault of every plugin, a line each."""


def load(settings: Settings) -> Router:
    """Load every plugin.

    Raises:
        PluginError: a plugin has a fault. Starting without it would silently skip its handlers.
    """
    router, faults = Router(), []
    made: list[tuple[str, Mark]] = []
    found: list[tuple[Source, object]] = []
    for source in _sources(settings):
        before, held = len(MARKS), Held()
        try:
            plugin = _found(source)
        except BadPlugin as bad:
            # What it marked before it failed belongs to a module that does not exist.
            del MARKS[before:]
            faults += [f"{source.origin}: {fault}" for fault in bad.faults]
            continue
        made += [(source.origin, mark) for mark in MARKS[before:]]
        found.append((source, plugin))
        try:
            router.add(plugin, source.name, source.origin)
        except BadPlugin as bad:
            faults += [f"{source.origin}: {fault}" for fault in bad.faults]
        faults += [f"{source.origin}: {fault}" for fault in held.added()]
    faults = [*_with_uncollected(faults, made, router), *_faults_of_groups()]
    faults += _faults_of_files(settings, found)
    needy = [handler for handler in router.handlers if handler.needs]
    if needy and settings.stripe_restricted_key is None:
        faults += [
            f"{handler.origin}: {handler.name} needs {', '.join(sorted(handler.needs))}:"
            " set STRIPE_RESTRICTED_KEY (rk_...)"
            for handler in needy
        ]
    if changed := logs.restore():
        log.warning("logging_restored", faults=changed)
    if faults:
        raise PluginError("\n".join(["plugins that cannot be used:", *faults]))
    return router


@dataclass(frozen=True, slots=True)
class Source:
    """A way to a plugin.

    Attributes:
        name: the plugin's.
        origin: where it comes from, in words.
        find: imports it.
        module: the module that is imported; empty for what is built in.
    """

    name: str
    origin: str
    find: Callable[[], object]
    module: str = ""


def _sources(settings: Settings) -> Iterator[Source]:
    """Yield the way to every plugin."""
    configured = _configured(settings)
    for each in sorted(pkgutil.iter_modules(_built_in.__path__), key=lambda m: m.name):
        path = f"{_built_in.__name__}.{each.name}"
        made = configured.get(each.name, {each.name: partial(importlib.import_module, path)})
        for name, find in made.items():
            yield Source(name, f"file {path}", find)
    for path in settings.handlers:
        name, module = path.rpartition(":")[2].rpartition(".")[2], path.partition(":")[0]
        yield Source(name, f"HANDLERS {path}", partial(_resolve, path), module)
    points = metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda point: point.name):
        yield Source(point.name, _origin(point), point.load, point.module)


def _origin(point: metadata.EntryPoint) -> str:
    return f"entry point {point.name} of {point.dist.name if point.dist else 'unknown'}"


def _configured(settings: Settings) -> dict[str, dict[str, Callable[[], object]]]:
    """Return, by the module of a built-in handler, the plugins that the settings make of it."""

    def build(path: str, *given: object, **named: object) -> object:
        # Only then is it imported, with a library that it may need.
        found = cast("Callable[..., object]", _resolve(f"{_built_in.__name__}.{path}"))
        return found(*given, **named)

    made: dict[str, dict[str, Callable[[], object]]] = {"audit": {}, "database": {}, "forward": {}}
    if settings.audit:
        made["audit"]["audit"] = partial(_resolve, f"{_built_in.__name__}.audit")
    if database := settings.identity_database:
        made["database"]["database"] = partial(
            build, "database:Database", database.get_secret_value()
        )
    for url in settings.forward_to:
        made["forward"][_forward_name(url)] = partial(_forward, build, settings, url)
    return made


def _forward(build: Callable[..., object], settings: Settings, url: str) -> object:
    if settings.forward_secret is None:  # of a tool; a worker does not start without it
        raise BadPlugin([NO_FORWARD_SECRET])
    secret = settings.forward_secret.get_secret_value()
    return build("forward:Forward", url, secret, private=settings.forward_private)


def _forward_name(url: str) -> str:
    """Return the name of the plugin that forwards to this URL: of its path nothing is shown."""
    return "forward-" + re.sub(r"[^a-z0-9.]+", "-", urlsplit(url).netloc.lower()).strip("-")


def _resolve(path: str) -> object:
    module_path, _, attribute = path.partition(":")
    found: object = importlib.import_module(module_path)
    for name in filter(None, attribute.split(".")):
        found = getattr(found, name)
    return found


def _with_uncollected(faults: list[str], made: list[tuple[str, Mark]], router: Router) -> list[str]:
    """Add a fault for each mark that no plugin collected: its function would never run."""
    lost = [(origin, mark) for origin, mark in made if mark not in router.seen]
    # Such a module has a mark that cannot be collected: the fault of that mark says more.
    empty = {f"{origin}: {NO_HANDLER}" for origin, _ in lost}
    return [
        *(fault for fault in faults if fault not in empty),
        *(
            f"{origin}: {why_not_collected(mark)} ({import_faults.at(mark.file, mark.line)})"
            for origin, mark in lost
        ),
    ]


def _faults_of_groups() -> Iterator[str]:
    """Yield a fault for each entry point whose group nobody reads, and which looks like ours."""
    points = metadata.entry_points()
    for group in sorted(points.groups - {GROUP}):
        # Without what is easily mistaken: dots, dashes, plural.
        word, ours = (re.sub(r"[-_. ]|s\b", "", each.lower()) for each in (group, GROUP))
        likeness = difflib.SequenceMatcher(None, word, ours).ratio()
        if likeness > GROUP_LIKENESS or word.startswith("identitywebhook"):
            for point in points.select(group=group):
                yield (
                    f"{_origin(point)}: is in the group {group!r}, which nothing reads: write"
                    f' [project.entry-points."{GROUP}"] in its pyproject.toml'
                )


def _faults_of_files(settings: Settings, found: list[tuple[Source, object]]) -> Iterator[str]:
    """Yield a fault for each file of a plugin that marks functions and was not imported.

    Runs when all plugins are imported, as a file may be the module of another plugin. Files that
    may be meant not to run are logged.
    """
    named = {source.module for source in _sources(settings)}
    beside: dict[str, str] = {}
    for source, plugin in found:
        for each in unimported.look(plugin, source.module, named) if source.module else ():
            if each.certain:
                yield f"{source.origin}: {each.sentence}"
            else:
                beside.setdefault(each.sentence, source.origin)
    if beside:
        log.warning("handlers_not_loaded", faults=[f"{o}: {text}" for text, o in beside.items()])


def _found(source: Source) -> object:
    try:
        return source.find()
    except BadPlugin:
        raise
    except ValidationError as error:  # a settings object that the module builds
        raise BadPlugin(import_faults.of_settings(error)) from None
    except BaseException as error:  # noqa: BLE001 (importing a plugin runs its code)
        said = import_faults.of(error, _advice(source, error))
        raise BadPlugin([f"cannot be imported: {said}"]) from None


def _advice(source: Source, error: BaseException) -> str:
    """Say what to do about an error of the import system; of the plugin's own it says enough."""
    if not source.module and not source.origin.startswith("HANDLERS"):
        return ""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and source.module != missing and not source.module.startswith(f"{missing}."):
        return f": install what holds {missing} beside the service"
    if missing or not import_faults.is_of_plugin(error):
        return (
            ": write package.module, or package.module:object, as Python imports it from PYTHONPATH"
            " or from an installed package"
        )
    return ""
