"""`service.logs`: what may leave the process, and that nothing else does."""

# Logging as one should not is what is tested here.
# ruff: noqa: G004, LOG014, TRY301, TRY400

from __future__ import annotations

import io
import json
import logging
import logging.config
import math
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ClassVar

import pytest
import redis
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import logs, process
from service.settings import Settings

WHSEC, SK, RK = "whsec_q7H2kP9sXv4LbN8w", "sk_live_51HbZ", "rk_test_51_Hb7Z"
SECRETS = [WHSEC, SK, RK, "sk_test_x"]


class Output(io.StringIO):
    """Standard output, to be read a line at a time."""

    def take(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text

    @property
    def line(self) -> dict[str, Any]:
        """The one line there is."""
        text = self.take()
        assert text.count("\n") == 1, text
        return json.loads(text)


@pytest.fixture(scope="session")
def canary() -> str:
    """Another word than everyone's: pytest itself prints what these tests log, unfiltered."""
    return "ZyxPersonal9Q"


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Output]:
    def configured(**fields: Any) -> Output:
        output = Output()
        monkeypatch.setattr(sys, "stdout", output)
        # pytest's own handlers at the root are let be.
        monkeypatch.setattr(logs, "RESTORE_PERIOD", math.inf)
        logs.configure(Settings(**{"log_format": "json", "log_level": "debug", **fields}))
        return output

    return configured


@pytest.fixture
def output(configured: Callable[..., Output]) -> Output:
    return configured()


@pytest.fixture
def log(output: Output) -> Any:
    return logs.get("test")


class Quoting(Exception):
    """Its text quotes what no log may hold."""


class TestKeys:
    def test_a_line_is_one_json_object(self, log, output) -> None:
        log.info("event_accepted", event_id="evt_1", count=2, livemode=False)
        line = output.line
        assert line.pop("timestamp").endswith("Z")
        assert line == {
            "event": "event_accepted",
            "level": "info",
            "logger": "test",
            "event_id": "evt_1",
            "count": 2,
            "livemode": False,
        }

    def test_a_key_that_is_not_allowed_is_dropped_and_named(self, log, output, canary) -> None:
        log.info("saved", name=canary, email=canary, count=1, _name=canary)
        text = output.take()
        assert canary not in text
        assert json.loads(text)["dropped"] == ["_name", "email", "name"]

    def test_bound_keys_too(self, log, output, canary) -> None:
        with structlog.contextvars.bound_contextvars(user=canary, event_id="evt_1"):
            log.bind(person=canary).info("saved")
        line = output.line
        assert line["dropped"] == ["person", "user"]
        assert line["event_id"] == "evt_1"
        assert canary not in str(line)

    def test_arguments_and_nothing_at_all(self, log, output, canary) -> None:
        log.info("hello %s", canary)
        log.info("none", reason=None)
        text = output.take()
        assert canary not in text
        assert "reason" not in text

    @pytest.mark.parametrize(
        "value",
        [{"name": "x"}, [["x"]], {"x"}, b"x", object(), ValueError("x")],
        ids=lambda value: type(value).__name__,
    )
    def test_of_a_value_that_is_no_text_only_the_type_is_shown(self, value, log, output) -> None:
        log.info("saved", status=value)
        assert output.line["status"] == f"<{type(value).__name__}>"

    def test_lists_of_words_and_counts_are_shown(self, log, output) -> None:
        log.info("saved", faults=["a", f"b {SK}", 3], counts={"done": 2, SK: 1.5})
        line = output.line
        assert line["faults"] == ["a", "b sk_live_***", "3"]
        assert line["counts"] == {"done": 2, "sk_live_***": 1.5}

    def test_a_long_text_is_cut_and_on_one_line(self, log, output) -> None:
        log.info("saved", reason="a\r\n\tb " + "x" * 1000)
        assert output.line["reason"] == "a b " + "x" * 196

    @pytest.mark.parametrize(
        ("text", "end"),
        [
            ("Jenny", "[pe"),
            ("jenny@mail.example.com", "[e-"),
            ("a://us:Pa55word@host", "a:/"),
        ],
    )
    def test_what_is_masked_is_masked_before_the_cut(self, text, end) -> None:
        """Of a half nobody could tell what it is the half of."""
        for length in range(180, 200):
            with logs.masking(["Jenny"]):
                shown = logs.redact("." * length + " " + text)
            assert not {"Je", "je", "us", "Pa"} & {shown[at : at + 2] for at in range(199)}
        with logs.masking(["Jenny"]):
            assert logs.redact("." * 196 + " " + text) == "." * 196 + " " + end


class TestExceptions:
    @pytest.mark.parametrize("how", ["exception", "exc_info", "object", "tuple"])
    def test_are_a_type_and_places_never_a_text(self, how, log, output, canary) -> None:
        try:
            try:
                raise KeyError(canary)
            except KeyError as cause:
                raise Quoting(canary) from cause
        except Quoting as error:
            if how == "exception":
                log.exception("failed")
            else:
                info = {"exc_info": True, "object": error, "tuple": sys.exc_info()}[how]
                log.error("failed", exc_info=info, stack_info=True)
        text = output.take()
        assert canary not in text
        line = json.loads(text)
        assert line["error"] == "Quoting"
        assert line["where"].startswith("test_logs.py:")
        assert line["where"].endswith(" test_are_a_type_and_places_never_a_text")

    def test_of_other_peoples_loggers_too(self, output, canary) -> None:
        try:
            raise Quoting(canary)
        except Quoting:
            logging.getLogger("requests").exception("call failed: %s", canary)
        text = output.take()
        assert canary not in text
        assert json.loads(text)["error"] == "Quoting"

    def test_without_one_there_is_nothing_to_say(self, log, output) -> None:
        log.error("failed", exc_info=True)
        assert "error" not in output.line

    def test_places_name_the_innermost_last(self) -> None:
        def inner() -> None:
            raise ValueError

        def outer() -> None:
            inner()

        with pytest.raises(ValueError) as caught:  # noqa: PT011
            outer()
        first, second = logs.places(caught.tb, last=2).split(" > ")
        assert first.endswith(" outer")
        assert second.endswith(" inner")
        assert logs.places(None) == ""


class TestSecrets:
    @pytest.mark.parametrize("secret", SECRETS)
    def test_keep_their_prefix_only(self, secret) -> None:
        prefix = secret[: secret.rindex("_", 0, 9) + 1]
        assert logs.redact(f"key={secret}, done") == f"key={prefix}***, done"

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://:pw@host:1/0", "redis://***@host:1/0"),
            ("rediss://user:p@w:d@host", "rediss://***@host"),
            ("https://token@sentry.example/1", "https://***@sentry.example/1"),
            ("https://example.com/a?to=b@c", "https://example.com/a?to=b@c"),
        ],
    )
    def test_passwords_in_urls(self, url, shown) -> None:
        assert logs.redact(f"at {url} now") == f"at {shown} now"

    @pytest.mark.parametrize("secret", [*SECRETS, "redis://u:Pa55@h"])
    def test_wherever_they_stand(self, secret, log, output) -> None:
        log.info(f"saved {secret}", reason=f"x{secret}", status=[secret], counts={secret: 1})
        logging.getLogger("other").warning(f"saved {secret}")
        logging.getLogger("other").warning("saved %s", secret)
        logging.getLogger("other").warning("saved %(key)s", {"key": secret})
        logging.getLogger("gunicorn.error").warning("saved %s", secret)
        assert secret not in output.take()

    @pytest.mark.parametrize(
        "text", ["://" + ":" * 10**6, "://a" * 10**6, "sk_test_" * 10**6, " " * 10**6, "@" * 10**6]
    )
    @pytest.mark.timeout(120)  # where time grows with the square, it is hours
    def test_no_text_takes_long(self, text) -> None:
        with logs.masking(["Ann Lee", "Ann"]):
            assert len(logs.redact(text)) <= 200

    @pytest.mark.parametrize("text", ["\udcff", "a\ud800b"])
    def test_what_cannot_be_encoded_is_replaced(self, text, log, output) -> None:
        assert logs.redact(text).encode()
        log.info("saved", reason=text)
        assert "?" in output.line["reason"]

    def test_quote_takes_anything(self) -> None:
        class Evil(Exception):
            def __str__(self) -> str:
                raise SystemExit

        assert logs.quote(Evil()) == "<Evil>"
        assert logs.quote(ValueError(f"no {SK}")) == "no sk_live_***"
        assert logs.quote(ValueError("no sk_org_live_51HbZ")) == "no sk_org_***"


class TestMasking:
    def test_values_are_masked_inside_and_only_inside(self, log, output) -> None:
        log.info("hello Jenny")
        with logs.masking(["Jenny", "Rosen"]):
            log.info("hello Jenny", reason="of JENNY ROSEN", status=["jenny"], counts={"Rosen": 1})
        log.info("hello Jenny")
        before, inside, after = map(json.loads, output.take().splitlines())
        assert before["event"] == after["event"] == "hello Jenny"
        assert inside["event"] == "hello [personal]"
        assert inside["reason"] == "of [personal] [personal]"
        assert inside["status"] == ["[personal]"]
        assert inside["counts"] == {"[personal]": 1}

    def test_of_other_peoples_messages_and_keys_too(self, log, output) -> None:
        with logs.masking(["Jenny"]):
            logging.getLogger("crm").warning("saved Jenny")
            log.info("saved", Jenny=1)
        other, own = map(json.loads, output.take().splitlines())
        assert other["event"] == "saved [personal]"
        assert own["dropped"] == ["[personal]"]

    def test_a_name_of_an_exception_or_function_too(self, log, output) -> None:
        with logs.masking(["Jenny"]):
            try:
                raise type("JennyError", (Exception,), {})
            except Exception:
                log.exception("failed")
        assert output.line["error"] == "[personal]Error"

    def test_an_inner_block_does_not_unmask_the_outer_ones_values(self) -> None:
        with logs.masking(["Ann Lee"]):
            with logs.masking(["Ann", "Bob"]):
                assert logs.redact("Ann Lee, Ann, Bob") == "[personal], [personal], [personal]"
            assert logs.redact("Ann Lee, Bob") == "[personal], Bob"
            with logs.masking([]):
                assert logs.redact("Ann Lee") == "[personal]"
        assert logs.redact("Ann Lee") == "Ann Lee"

    def test_it_ends_with_an_exception(self) -> None:
        with pytest.raises(KeyError), logs.masking(["Jenny"]):
            raise KeyError
        assert logs.redact("Jenny") == "Jenny"

    def test_a_thread_without_values_of_its_own_masks_everyones(self) -> None:
        found = []

        def other_thread() -> None:
            found.append(logs.redact("Jenny, Bob"))
            with logs.masking(["Bob"]):
                found.append(logs.redact("Jenny, Bob"))

        def run() -> None:
            thread = threading.Thread(target=other_thread)
            thread.start()
            thread.join()

        with logs.masking(["Jenny"]):
            run()
        run()
        assert found == ["[personal], Bob", "Jenny, [personal]", "Jenny, Bob", "Jenny, [personal]"]

    @pytest.mark.parametrize(
        ("value", "text", "shown"),
        [
            ("1 Main St", "at 1  Main\nSt.", "at [personal]."),
            ("Jenny ", "Jenny, Jennyfer", "[personal], [personal]fer"),
            ("José", json.dumps({"name": "José"}), '{"name": "[personal]"}'),
            ("O'Ne\"il", repr("O'Ne\"il"), "'[personal]'"),
            ("a.c", "abc a.c", "abc [personal]"),
            ("Li", "Li, outline, li_", "[personal], outline, li_"),
            ("李", "姓李名四", "姓[personal]名四"),
            ("12", "12 of 12", "12 of 12"),
            ("", "a b", "a b"),
            ("   ", "a   b", "a   b"),
        ],
    )
    def test_however_it_is_written(self, value, text, shown) -> None:
        with logs.masking([value]):
            assert logs.redact(text) == shown


class TestOtherLoggers:
    """gunicorn, RQ, stripe and warnings come out in the one format."""

    @pytest.mark.parametrize(
        ("name", "level", "message"),
        [
            ("gunicorn.error", "warning", "Worker (pid:42) exited"),
            ("rq.worker", "error", "Job failed"),
            ("stripe", "warning", "100 % retrying"),
            ("elsewhere", "info", "hello"),
        ],
    )
    def test_in_one_format(self, name, level, message, output) -> None:
        getattr(logging.getLogger(name), level)(message)
        line = output.line
        assert line.pop("timestamp").endswith("Z")
        assert line == {"event": message, "level": level, "logger": name}

    @pytest.mark.parametrize(
        ("message", "arguments", "of_rq", "of_others"),
        [
            (
                "Worker %s: could not connect to Redis instance: %s retrying in %d seconds...",
                ("4f1c.identity", ConnectionError("redis://:x@host"), 4),
                "Worker 4f1c.identity: could not connect to Redis instance: ConnectionError"
                " retrying in 4 seconds...",
                "Worker <str>: could not connect to Redis instance: ConnectionError"
                " retrying in <int> seconds...",
            ),
            (
                "job %s: exception raised while executing (%s)\n%s",
                ("evt_1-7", "f('Jenny Rosen')", "Traceback: Jenny Rosen"),
                "job evt_1-7: exception raised while executing (<str>) <str>",
                "job <str>: exception raised while executing (<str>) <str>",
            ),
            (
                "%r of %5.1f%% is %x",
                ([1], 2.5, 255),
                "<list> of 2.5% is 255",
                "<list> of <float>% is <int>",
            ),
            ("%(a)s and %(b)03d", ({"a": b"x", "b": 2},), "<bytes> and 2", "<bytes> and <int>"),
            ("%s", (), "%s", "%s"),
            ("%s and %s", ("a",), "%s and %s", "%s and %s"),
            ("%*d", (3, 4), "%*d", "%*d"),
            ("%s", (type("Quiet", (str,), {"__str__": lambda _: "x"})("a"),), "<Quiet>", "<Quiet>"),
        ],
    )
    def test_arguments_are_shown_as_far_as_they_say_nothing_of_anybody(
        self, message, arguments, of_rq, of_others, output
    ) -> None:
        logging.getLogger("rq.worker").error(message, *arguments)
        assert output.line["event"] == of_rq
        logging.getLogger("elsewhere").error(message, *arguments)
        assert output.line["event"] == of_others

    @pytest.mark.parametrize("name", logs._QUIET)
    def test_chatter_is_not_heard(self, name, output) -> None:
        logging.getLogger(name).info("GET /v1/identity/verification_sessions/vs_1")
        assert output.take() == ""

    def test_gunicorns_arguments_are_kept_but_not_with_an_exception(self, output, canary) -> None:
        logger = logging.getLogger("gunicorn.error")
        logger.warning("Listening at: %s (%s)", "http://127.0.0.1:1", 42)
        assert output.line["event"] == "Listening at: http://127.0.0.1:1 (42)"
        try:
            raise Quoting(canary)
        except Quoting:
            logger.exception("Error handling request %s", f"/?name={canary}")
        assert output.line["event"] == "Error handling request <str>"

    @pytest.mark.parametrize(
        "message", [Quoting("x"), {"name": "x"}, ["x"]], ids=["exception", "dict", "list"]
    )
    def test_a_message_that_is_no_text_may_quote_anything(self, message, output) -> None:
        logging.getLogger("elsewhere").error(message)
        assert output.line["event"] == f"<{type(message).__name__}>"

    def test_extra_fields_are_not_taken(self, output, canary) -> None:
        logging.getLogger("elsewhere").warning("hello", extra={"name_of_person": canary})
        assert canary not in output.take()

    def test_warnings(self, output) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)  # anew: `catch_warnings` undid it
            logging.captureWarnings(capture=True)
            warnings.warn(f"do not use {SK}", UserWarning, stacklevel=1)
        line = output.line
        assert (line["logger"], line["level"]) == ("py.warnings", "warning")
        assert "UserWarning: do not use sk_live_***" in line["event"]


class TestFormats:
    def test_the_console_shows_the_same_and_no_more(self, configured, canary) -> None:
        output = configured(log_format="console")
        try:
            raise Quoting(canary)
        except Quoting:
            with logs.masking([canary]):
                logs.get("t").exception(f"x {canary}", reason=f"{canary} {SK}", name=canary)
                logging.getLogger("other").exception(f"y {canary} %s", canary)
        text = output.take()
        assert canary not in text
        assert SK not in text
        assert text.count("\n") == 2
        assert "Quoting" in text

    def test_auto_is_json_where_there_is_no_terminal(self, configured) -> None:
        output = configured(log_format="auto")
        logs.get("t").info("saved")
        assert output.line["event"] == "saved"

    @pytest.mark.parametrize(
        ("log_format", "is_json"), [("auto", False), ("console", False), ("json", True)]
    )
    def test_on_a_terminal(self, log_format, is_json, monkeypatch) -> None:
        terminal = Output()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        logs.configure(Settings(log_format=log_format), terminal)
        logs.get("t").info("saved")
        assert terminal.take().startswith("{") == is_json

    @pytest.mark.parametrize("reader", ["slow", "gone"])
    def test_a_line_is_written_whole_and_nobody_who_reads_is_no_trouble(
        self, reader, output, monkeypatch
    ) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading) as read, os.fdopen(writing, "w") as stream:
            logs.configure(Settings(log_format="json"), stream)
            if reader == "gone":
                read.close()
            write = os.write
            monkeypatch.setattr(os, "write", lambda to, data: write(to, data[:7]))
            logs.get("t").info("saved", reason="Käse")
            monkeypatch.undo()
            stream.close()
            logs.get("t").info("closed")
            if reader == "slow":
                (line,) = read.read().splitlines()
                assert json.loads(line)["reason"] == "Käse"

    def test_another_stream(self, output) -> None:
        elsewhere = Output()
        logs.configure(Settings(log_format="json"), elsewhere)
        logs.get("t").info("saved")
        assert elsewhere.line["event"] == "saved"
        assert output.take() == ""

    def test_the_level(self, configured) -> None:
        output = configured(log_level="warning")
        logs.get("t").info("unheard")
        logs.get("t").warning("heard")
        assert output.line["event"] == "heard"
        logging.getLogger("other").info("unheard")
        logging.getLogger("other").warning("heard")
        assert output.line["event"] == "heard"


# Anything but what stands in every line anyway.
personal = st.one_of(
    st.text(st.characters(categories=["L", "M", "N"], min_codepoint=0xC0), min_size=6),
    st.builds("Zq{}7Q".format, st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]))),
)
secret = st.builds(
    "{}{}".format,
    st.sampled_from(["whsec_", "sk_live_", "sk_test_", "rk_live_", "rk_test_"]),
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-", min_size=12),
)
around = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLACES: dict[str, Callable[[Any, str], None]] = {
    "event": lambda log, text: log.info(text),
    "value": lambda log, text: log.info("x", reason=text),
    "object": lambda log, text: log.info("x", reason=Quoting(text)),
    "list": lambda log, text: log.info("x", faults=["a", text]),
    "dict": lambda log, text: log.info("x", counts={text: 1}),
    "dict of texts": lambda log, text: log.info("x", counts={"a": text}),
    "key": lambda log, text: log.info("x", **{text: 1}),
    "hidden key": lambda log, text: log.info("x", **{"_" + text: text}),
    "bound": lambda log, text: log.bind(subject=text).info("x"),
    "argument": lambda log, text: log.info("x %s", text),
    "exception": lambda log, text: log.info("x", exc_info=Quoting(text)),
    "other's message": lambda _, text: logging.getLogger("other").info(text),
    "other's argument": lambda _, text: logging.getLogger("other").info("%s", text),
    "other's exception": lambda _, text: logging.getLogger("other").error(Quoting(text)),
    "RQ's argument": lambda _, text: logging.getLogger("rq.worker").error("%s", text),
    "RQ's exception": lambda _, text: logging.getLogger("rq").error("%s %r", text, Quoting(text)),
    "an argument by name": lambda _, text: logging.getLogger("rq").error("%(a)s", {"a": text}),
    "gunicorn's argument": lambda _, text: logging.getLogger("gunicorn.error").info("%s", text),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("log_format", ["json", "console"])
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(personal=personal, secret=secret, before=around, after=around)
def test_nothing_personal_and_no_secret_leaves_from_anywhere(
    place, log_format, configured, personal, secret, before, after
) -> None:
    output = configured(log_format=log_format)
    with logs.masking([personal]):
        PLACES[place](logs.get("t"), f"{before}{personal}{after} {secret} {personal!r}")
    text = output.take()
    assert text, "something was logged"
    if log_format == "json":
        text += repr(json.loads(text)) + json.dumps(json.loads(text), ensure_ascii=False)
    assert personal not in text
    assert secret not in text


class TestWhatPluginsDo:
    """They replace the configuration, and ours comes back."""

    REPLACE: ClassVar = {
        "basicConfig": (
            lambda stream: logging.basicConfig(stream=stream, force=True),
            ["the root logger"],
        ),
        "dictConfig": (
            lambda _: logging.config.dictConfig(
                {
                    "version": 1,
                    "disable_existing_loggers": True,
                    "handlers": {"console": {"class": "logging.StreamHandler"}},
                    "loggers": {"shop": {"handlers": ["console"], "propagate": False}},
                }
            ),
            ["the logger shop"],
        ),
        "a level": (lambda _: logging.getLogger().setLevel("CRITICAL"), ["the root logger"]),
        "a logger's end": (
            lambda _: setattr(logging.getLogger("shop"), "disabled", True),
            ["the logger shop"],
        ),
        "a library's own handler of nothing": (
            lambda _: logging.getLogger("shop").addHandler(logging.NullHandler()),
            [],
        ),
        "structlog": (
            lambda stream: structlog.configure(
                processors=[structlog.processors.JSONRenderer()],
                logger_factory=structlog.PrintLoggerFactory(stream),
            ),
            ["structlog"],
        ),
        "nothing": (lambda _: None, []),
    }

    @pytest.mark.parametrize(("replace", "changed"), REPLACE.values(), ids=REPLACE)
    def test_is_undone_and_said(self, replace, changed, configured) -> None:
        output, theirs = configured(), io.StringIO()
        logging.getLogger("shop")
        replace(theirs)
        assert set(changed) <= (found := set(logs.restore()))
        assert changed or not found
        assert logs.restore() == []
        with logs.masking(["Jenny"]):
            logs.get("a").error("hello Jenny")
            structlog.get_logger("b").error("hello Jenny")
            logging.getLogger("shop").error("hello Jenny")
            logging.getLogger("django.request").error("hello Jenny")
        said = [json.loads(line) for line in output.take().splitlines()]
        assert [line["event"] for line in said] == ["hello [personal]"] * 4
        assert theirs.getvalue() == ""

    def test_is_undone_while_events_are_processed(self, configured, monkeypatch) -> None:
        output, theirs = configured(), io.StringIO()
        logs.restore()
        monkeypatch.setattr(logs, "RESTORE_PERIOD", 0)
        logging.basicConfig(stream=theirs, force=True)
        with logs.masking(["Jenny"]):
            logging.getLogger("shop").error("hello Jenny")
        restored, said = map(json.loads, output.take().splitlines())
        assert (restored["event"], restored["faults"]) == ("logging_restored", ["the root logger"])
        assert said["event"] == "hello [personal]"

    def test_chatter_that_a_plugin_lets_be_heard_is_stopped(self, output) -> None:
        logs.restore()
        for name in logs._QUIET:
            logging.getLogger(name).setLevel(logging.DEBUG)
        logs.restore()
        for name in logs._QUIET:
            logging.getLogger(name).info("GET /v1/identity/verification_sessions/vs_1")
        assert output.take() == ""

    def test_our_own_loggers_do_not_depend_on_structlogs_configuration(self, configured) -> None:
        output = configured()
        structlog.configure(processors=[structlog.processors.JSONRenderer()])
        with logs.masking(["Jenny"]):
            logs.get("handler").bind(attempt=1).info("hello Jenny", name="Jenny")
        assert output.line["event"] == "hello [personal]"


class TestEmailAddresses:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("jenny.rosen+a@mail.example.com", "[e-mail]"),
            ("to <jenny@example.com>, now", "to <[e-mail]>, now"),
            ("jenny@müller.example", "[e-mail]"),
            ("a@b", "a@b"),
            ("worker@10", "worker@10"),
            ("redis://u:pw@cache.example:6379/0", "redis://***@cache.example:6379/0"),
        ],
    )
    def test_are_masked_everywhere(self, text, shown, log, output) -> None:
        assert logs.redact(text) == shown
        log.info("verified", subject=text)
        assert output.line["subject"] == shown

    def test_no_text_takes_long(self) -> None:
        for text in ("a" * 1_000_000 + "@", "a@" * 500_000, "a." * 500_000 + "@", "@a-" * 300_000):
            logs.redact(text)


class Left:
    """A thread that is started in a block and goes on when that has ended."""

    def __init__(self, begin: Callable[[], None] = lambda: None) -> None:
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        with logs.masking(["Jenny"]):
            self._thread = threading.Thread(target=self._work, args=[begin])
            self._thread.start()
            assert self._told.get(timeout=120) == "begun"

    def _work(self, begin: Callable[[], None]) -> None:
        begin()
        self._told.put("begun")
        for text in iter(self._asked.get, None):
            self._told.put(logs.redact(text))

    def masks(self, text: str) -> str:
        self._asked.put(text)
        return self._told.get(timeout=120)

    def end(self) -> None:
        self._asked.put(None)
        self._thread.join(120)


class TestThreadsThatOutliveTheirBlock:
    """Such as a handler may start, and leave to itself."""

    @pytest.fixture
    def leave(self) -> Iterator[Callable[..., Left]]:
        left: list[Left] = []

        def leave(*begin: Callable[[], None]) -> Left:
            left.append(Left(*begin))
            return left[-1]

        yield leave
        for each in left:
            each.end()

    def test_they_mask_what_it_masked(self, leave) -> None:
        left = leave()
        assert left.masks("Jenny") == "[personal]"
        with logs.masking(["Bob"]):
            assert left.masks("Jenny and Bob") == "[personal] and [personal]"
            assert logs.redact("Jenny") == "Jenny", "a block has its own values alone"
        assert left.masks("Jenny and Bob") == "[personal] and Bob"
        assert logs.redact("Jenny") == "[personal]", "so has what such a thread may start"

    def test_nothing_is_kept_when_they_have_ended(self, leave) -> None:
        left, other = leave(), leave()
        left.end()
        assert other.masks("Jenny") == "[personal]"
        other.end()
        assert logs.redact("Jenny") == "Jenny"
        assert logs._outlived == []

    def test_for_a_thread_of_ours_nothing_is_kept(self, leave) -> None:
        left = leave(logs.is_ours)
        assert left.masks("Jenny") == "Jenny"
        assert logs._outlived == []

    def test_a_thread_of_a_pool_masks_in_a_context_of_the_handler(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()
            with logs.masking(["Jenny"]):
                context = copy_context()
            assert pool.submit(context.run, logs.redact, "Jenny").result() == "[personal]"


class TestHookedExceptions:
    def test_are_types_and_places(self, configured, monkeypatch) -> None:
        for name in ("excepthook", "unraisablehook"):
            monkeypatch.setattr(sys, name, getattr(sys, name))
        monkeypatch.setattr(threading, "excepthook", threading.excepthook)
        output = configured()
        process.hook_exceptions()

        def fail() -> None:
            raise ValueError("Jenny Rosen")

        class Finalized:
            def __del__(self) -> None:
                fail()

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        Finalized()
        sys.excepthook(ValueError, ValueError("Jenny Rosen"), None)
        thread = threading.Thread(target=sys.exit)
        thread.start()
        thread.join()
        said = [json.loads(line) for line in output.take().splitlines()]
        assert [(line["event"], line["error"]) for line in said] == [
            ("thread_failed", "ValueError"),
            ("finalizer_failed", "ValueError"),
            ("process_failed", "ValueError"),
        ]
        assert all("Jenny" not in json.dumps(line) for line in said)
        assert said[0]["where"].endswith(" fail")


class TestErrorsOfRedis:
    """Whoever logs one, its cause is said, and not its text."""

    def test_as_an_exception(self, configured: Callable[..., Output], canary: str) -> None:
        output = configured()
        try:
            raise redis.ReadOnlyError(canary, status_code="READONLY")
        except redis.RedisError:
            logs.get("x").exception("sweep_failed")
        assert output.line["code"] == "READONLY"

    def test_in_the_words_of_rq(self, configured: Callable[..., Output], canary: str) -> None:
        output = configured()
        template = "Worker %s: could not connect to Redis instance: %s retrying in %d seconds..."
        error = redis.ConnectionError(f"Error 111 connecting to {canary}")
        error.__context__ = ConnectionRefusedError(111, canary)
        logging.getLogger("rq.worker").error(template, "4f1c", error, 2)
        said = output.line["event"]
        assert canary not in said
        assert said.startswith("Worker 4f1c: could not connect to Redis instance: nothing listens")
        assert said.endswith("(ECONNREFUSED) retrying in 2 seconds...")
