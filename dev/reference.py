"""Write docs/reference/ from the code: `make reference`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

import identity_webhooks
import service.__main__
import workers.__main__
from dev.env_example import plain
from dev.handlers_page import freshness_table
from identity_webhooks import KINDS, SENTENCES, Outcome, Verification, database, testing
from identity_webhooks.event import TYPE_PREFIX
from identity_webhooks.verification import SENSITIVE
from service.metrics import TABLE
from service.metrics_page import GAUGES
from service.settings import Settings

FOLDER = Path(__file__).resolve().parents[1] / "docs/reference"

_MADE = "Made from the code by `make reference`; do not edit."


def pages() -> dict[str, str]:
    """Return the text of each page, by its file name."""
    return {
        "settings.md": settings(),
        "metrics.md": metric_tables(),
        "commands.md": commands(),
        "handler-api.md": handler_api(),
        "events.md": events(),
    }


def _page(title: str, reader: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", f"*{reader} {_MADE}*", *parts]) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    escaped = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in escaped)


# --- settings ------------------------------------------------------------------------------------


def settings() -> str:
    """Return the page of settings: every variable of the environment that is read."""
    return _page(
        "Settings",
        "For those who configure the service: every environment variable it reads.",
        "`NAME_FILE` names a file that holds the value of `NAME` instead, as Docker and Kubernetes"
        " mount secrets. An empty value counts as not set. `python -m service check` reports every"
        " fault at once. As a file to fill in: [deploy/env.example](../../deploy/env.example).",
        _table(
            ("name", "default", "values", "meaning"),
            [_setting(*item) for item in Settings.model_fields.items()],
        ),
    )


def _setting(name: str, field: FieldInfo) -> tuple[str, ...]:
    names = [name.upper()]
    if isinstance(field.validation_alias, AliasChoices):
        names = [str(choice) for choice in field.validation_alias.choices]
    called = f"`{names[0]}`" + "".join(f" or `{other}`" for other in names[1:])
    default = plain(field.default)
    limits = {
        each: value
        for constraint in field.metadata
        for each in ("ge", "gt", "le", "lt")
        if (value := getattr(constraint, each, None)) is not None
    }
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    said = " ".join(f"{signs[each]} {value}" for each, value in limits.items())
    return called, f"`{default}`" if default else "", said, field.description or ""


# --- metrics -------------------------------------------------------------------------------------


def metric_tables() -> str:
    """Return the page of metrics."""

    def name_of(name: str) -> str:
        each = TABLE[name]
        web = "web_" if each.of == "web" else ""
        return f"`identity_webhooks_{web}{name}{'' if each.buckets else '_total'}`"

    def labels_of(labels: tuple[str, ...]) -> str:
        return " ".join(f"`{each}`" for each in labels)

    counters = [
        (name_of(n), labels_of(e.labels), e.sentence) for n, e in TABLE.items() if not e.buckets
    ]
    histograms = [
        (name_of(n), labels_of(e.labels), " ".join(f"{b:g}" for b in e.buckets), e.sentence)
        for n, e in TABLE.items()
        if e.buckets
    ]
    gauges = [
        (f"`identity_webhooks_{name}`", labels_of(labels), sentence)
        for name, (sentence, labels) in GAUGES.items()
    ]
    return _page(
        "Metrics",
        "For those who watch the service: what `/metrics` of each web process shows.",
        "How they are made and added up:"
        " [operations.md](../operations.md#metrics-alerts-and-the-dashboard).",
        "## Counters",
        _table(("name", "labels", "meaning"), counters),
        "## Histograms",
        _table(("name", "labels", "buckets, in seconds", "meaning"), histograms),
        "## Gauges",
        _table(("name", "labels", "meaning"), gauges),
    )


def commands() -> str:
    """Return the page of commands: what --help says, for all of them."""
    parts = []
    for name, group in (("service", service.__main__.main), ("workers", workers.__main__.main)):
        for context in _contexts(group, f"python -m {name}"):
            parts += [f"## {context.command_path}", f"```text\n{context.get_help()}\n```"]
    return _page(
        "Commands",
        "For those who run the service: every command and option, as `--help` prints them.",
        *parts,
    )


def _contexts(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[click.Context]:
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=100, max_content_width=100
    )
    yield context
    if isinstance(command, click.Group):
        for each, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from _contexts(inner, each, context)


# --- handler API ---------------------------------------------------------------------------------


def handler_api() -> str:
    """Return the page of what handler authors import."""
    parts = ["## identity_webhooks", *_documented(identity_webhooks)]
    parts += ["## Verification, its methods", *_methods(Verification)]
    parts += ["## Outcome, its methods", *_methods(Outcome)]
    sensitive = [(f"`{need}`", f"`v.sensitive.{name}`") for need, name in SENSITIVE.items()]
    parts += ["## Sensitive fields", _table(("`needs=`", "attribute"), sensitive)]
    parts += ["## identity_webhooks.testing", *_documented(testing)]
    parts += ["## identity_webhooks.database"]
    for name in ("create_table", "save", "is_verified"):
        parts += _member(name, getattr(database, name))
    return _page(
        "Handler API",
        "For those who write handlers: every name to import, with its types and its docstring.",
        *parts,
    )


def _documented(module: ModuleType) -> list[str]:
    parts = []
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            parts += _member(name, value)
    return parts


def _methods(kind: type) -> list[str]:
    parts = []
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            parts += [f"### {name}", _text(member)]
        elif isinstance(member, classmethod):
            parts += _member(name, member.__func__)
        elif inspect.isfunction(member):
            parts += _member(name, member)
    return parts


def _member(name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        return [f"### {name}", _text(value)]
    shape = _unquoted(inspect.signature(value))
    written = f"{name}{shape}"
    if len(written) > 100:
        # One parameter a line, `*` before those that have to be named.
        given = list(shape.parameters.values())
        lines = [f"    {each}," for each in given]
        named = [i for i, each in enumerate(given) if each.kind is each.KEYWORD_ONLY]
        if named and not any(each.kind is each.VAR_POSITIONAL for each in given):
            lines.insert(named[0], "    *,")
        written = "\n".join([f"{name}(", *lines, f") -> {shape.return_annotation}"])
    return [f"### {name}", f"```text\n{written}\n```", _text(value)]


class _Bare(str):
    """An annotation, which a signature would put in quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _unquoted(shape: inspect.Signature) -> inspect.Signature:
    given = [_readable(each) for each in shape.parameters.values()]
    return shape.replace(parameters=given, return_annotation=_Bare(shape.return_annotation))


def _readable(parameter: inspect.Parameter) -> inspect.Parameter:
    if parameter.annotation is not parameter.empty:
        parameter = parameter.replace(annotation=_Bare(parameter.annotation))
    for name in identity_webhooks.__all__:
        if parameter.default is getattr(identity_webhooks, name):
            return parameter.replace(default=_Bare(name))
    return parameter


def _text(value: object) -> str:
    """Return a docstring as Markdown: Google's sections become lists."""
    text = inspect.cleandoc(getattr(value, "__doc__", None) or "")
    parts = re.split(r"^(Args|Attributes|Raises|Returns):\n", text, flags=re.MULTILINE)
    shown = [parts[0].strip()]
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        own, _, after = body.partition("\n\n")
        items = re.findall(r"^ {4}([\w.]+): (.*(?:\n {8}.*)*)", own, re.MULTILINE)
        shown.append(f"{head}:")
        shown.append("\n".join(f"- `{name}`: {' '.join(what.split())}" for name, what in items))
        if after.strip():
            shown.append(after.strip())
    return "\n\n".join(shown)


# --- events --------------------------------------------------------------------------------------


def events() -> str:
    """Return the page of events: what Stripe sends, and what a handler is told."""
    rows = [(f"`{kind}`", f"`{TYPE_PREFIX}{kind}`", f"`v1.{TYPE_PREFIX}{kind}`") for kind in KINDS]
    reasons = [(f"`{reason}`", sentence) for reason, sentence in SENTENCES.items()]
    return _page(
        "Events",
        "For those who write handlers or add a webhook endpoint: what comes, and what it means.",
        "## Types",
        "A change arrives as a snapshot event, as a thin event, or as both; `@on` takes the kind.",
        _table(("kind", "type as a snapshot", "type as a thin event"), rows),
        "## When a handler is called",
        "Rows: the kind of the event. Columns: where the session stands when the worker fetches it."
        " A superseded event goes only to handlers with `superseded=True`.",
        freshness_table().strip(),
        "## Reasons",
        "The codes of `last_error` that `v.outcome.reason` may hold, and the sentence that"
        " `sentence_for` returns, to be shown to the person.",
        _table(("reason", "sentence"), reasons),
    )


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
