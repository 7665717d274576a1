"""`service.settings`: every fault in one message, no secret in any."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import stripe
from pydantic import SecretStr

from service.console import people
from service.settings import Role, Settings, SettingsError
from service.signature import Secret

WHSEC = "whsec_q7H2kP9sXv4LbN8wRt3YcZ6m"
OTHER = "whsec_Jd5Gf1Ue0Ta7Io2WnMxVbQhE"
Load = Callable[..., Settings]
Faults = Callable[..., list[str]]
File = Callable[[str | bytes], str]
WEB = {"STRIPE_WEBHOOK_SECRET": WHSEC, "STRIPE_LIVEMODE": "0"}
WORKER = {"STRIPE_API_KEY": "rk_test_51Hb7ZkLdIwHu7ix"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        given = {*Settings.model_fields, "stripe_secret_key", "requests_ca_bundle", "ssl_cert"}
        if name.lower().removesuffix("_file") in given:
            monkeypatch.delenv(name)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    def load(role: Role = "web", /, **env: str) -> Settings:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return Settings.load(role)

    return load


@pytest.fixture
def faults(load: Load) -> Faults:
    """Return the lines of the error, without its heading."""

    def faults(role: Role = "web", /, **env: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load(role, **env)
        heading, *lines = str(caught.value).split("\n")
        assert heading == "the settings are not complete:"
        return lines

    return faults


class TestComplete:
    def test_web(self, load: Load) -> None:
        settings = load("web", **WEB)
        assert settings.stripe_webhook_secret == (Secret("default", WHSEC.encode()),)
        assert settings.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
        assert settings.stripe_webhook_tolerance == 300
        assert settings.handlers == ()
        assert not settings.accept_redis_loss
        assert not settings.reopen_dead_on_redelivery

    def test_worker_needs_no_signing_secret(self, load: Load) -> None:
        settings = load("worker", **WORKER)
        assert settings.stripe_webhook_secret == ()
        assert settings.stripe_api_key.get_secret_value() == WORKER["STRIPE_API_KEY"]

    def test_tool_needs_nothing(self, load: Load) -> None:
        assert load("tool").livemode is None

    def test_settings_do_not_change(self, load: Load) -> None:
        with pytest.raises(ValueError, match="frozen"):
            load("tool").inbox_limit = 1

    def test_empty_variables_are_unset(self, load: Load) -> None:
        assert load("web", **WEB, REDIS_URL="", INBOX_LIMIT="", STRIPE_LOG="").inbox_limit is None

    def test_handlers_are_split(self, load: Load) -> None:
        assert load("tool", HANDLERS="a.b, c.d:e,,").handlers == ("a.b", "c.d:e")

    @pytest.mark.parametrize("name", ["STRIPE_API_KEY", "STRIPE_SECRET_KEY"])
    def test_the_api_key_has_two_names(self, load: Load, name: str) -> None:
        key = load("worker", **{name: "sk_test_51Hb7ZkLdIwHu7ix"}).stripe_api_key
        assert key.get_secret_value() == "sk_test_51Hb7ZkLdIwHu7ix"


FORWARD_SECRET = "whsec_Rm9yd2FyZFNlY3JldE9mMzJCeXRlczEyMzQ1Njc4"
PERSON = f"ann:read-only=pbkdf2:sha256:1$saltsalt${'0123456789abcdef' * 4}"
# A value of each kind that settings have, and how it comes out.
VALUES = {
    "STRIPE_WEBHOOK_SECRET": (WHSEC, (Secret("default", WHSEC.encode()),)),
    "STRIPE_API_KEY": ("rk_test_51Hb7ZkLdIwHu7ix", "rk_test_51Hb7ZkLdIwHu7ix"),
    "STRIPE_RESTRICTED_KEY": ("rk_live_51Hb7ZkLdIwHu7ix", "rk_live_51Hb7ZkLdIwHu7ix"),
    "STRIPE_LIVEMODE": ("1", True),
    "STRIPE_API_BASE": ("http://127.0.0.1:1", "http://127.0.0.1:1"),
    "HTTPS_PROXY": ("http://u:p@proxy:3128", "http://u:p@proxy:3128"),
    "NO_PROXY": ("localhost,.internal", "localhost,.internal"),
    "STRIPE_CA_BUNDLE": (stripe.ca_bundle_path, Path(stripe.ca_bundle_path)),
    "STRIPE_API_RATE": ("7", 7),
    "STRIPE_WEBHOOK_TOLERANCE": ("7", 7),
    "DRAIN_SECONDS": ("2.5", 2.5),
    "REDIS_URL": ("redis://:p@10.0.0.1/0", "redis://:p@10.0.0.1/0"),
    "REDIS_TLS_VERIFY": ("0", False),
    "REDIS_VOUCH_FOR": ("append-only, eviction", ("append-only", "eviction")),
    "ACCEPT_REDIS_LOSS": ("yes", True),
    "INBOX_LIMIT": ("7", 7),
    "RETENTION_DAYS": ("40", 40),
    "REOPEN_DEAD_ON_REDELIVERY": ("1", True),
    "STRIPE_CONNECTED_ACCOUNTS": ("1", True),
    "AUDIT": ("0", False),
    "IDENTITY_DATABASE": ("sqlite:///sessions.db", "sqlite:///sessions.db"),
    "FORWARD_TO": (
        "https://a.example/x,https://b.example",
        ("https://a.example/x", "https://b.example"),
    ),
    "FORWARD_SECRET": (FORWARD_SECRET, FORWARD_SECRET),
    "FORWARD_PRIVATE": ("1", True),
    "CONSOLE_PASSWORD_HASH": (PERSON, people.parse(PERSON)),
    "CONSOLE_USER_HEADER": ("X-User", "X-User"),
    "CONSOLE_PROXIES": ("10.0.0.1, ::1", ("10.0.0.1", "::1")),
    "CONSOLE_OPERATORS": ("a@b.example,c", ("a@b.example", "c")),
    "HANDLERS": ("a.b,c", ("a.b", "c")),
    "WORKER_CONCURRENCY": ("7", 7),
    "PORT": ("5000", 5000),
    "WEB_CONCURRENCY": ("7", 7),
    "LOG_LEVEL": ("Warning", "warning"),
    "LOG_FORMAT": ("CONSOLE", "console"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
    "SENTRY_DSN": ("https://key@sentry.example/1", "https://key@sentry.example/1"),
    "STRIPE_LOG": ("info", "info"),
}
AROUND = [
    "{}\n",
    "{}\r\n",
    "{}\r",
    " \t{} ",
    "\ufeff{}",
    "\ufeff{}\r\n",
    "\u00a0{}",
    '"{}"',
    "'{} '\n",
]
NOTHING = ["", " ", "\r\n", "\ufeff", "\u00a0", '""', "' '\n"]


class TestOneRule:
    """What surrounds a value, and what counts as none, is the same for all of them."""

    def test_the_table_is_whole(self) -> None:
        assert {name.lower() for name in VALUES} == set(Settings.model_fields)

    @pytest.mark.parametrize("source", ["variable", "file"])
    @pytest.mark.parametrize("around", AROUND, ids=ascii)
    @pytest.mark.parametrize("name", VALUES)
    def test_around_a_value(self, load: Load, tmp_path: Path, name, around, source) -> None:
        given, meant = VALUES[name]
        assert as_read(load, tmp_path, source, name, around.format(given)) == meant

    @pytest.mark.parametrize("source", ["variable", "file"])
    @pytest.mark.parametrize("nothing", NOTHING, ids=ascii)
    @pytest.mark.parametrize("name", VALUES)
    def test_nothing(self, load: Load, tmp_path: Path, name, nothing, source) -> None:
        default = Settings.model_fields[name.lower()].default
        default = default.get_secret_value() if isinstance(default, SecretStr) else default
        assert as_read(load, tmp_path, source, name, nothing) == default

    def test_a_blank_name_gives_way_to_the_other(self, load: Load) -> None:
        env = {"STRIPE_API_KEY": " ", "STRIPE_SECRET_KEY": "sk_live_51Hb"}
        assert load("tool", **env).livemode is True

    def test_a_blank_variable_gives_way_to_the_file(self, load: Load, tmp_path: Path) -> None:
        (tmp_path / "limit").write_text("7\n")
        env = {"INBOX_LIMIT": "\r\n", "INBOX_LIMIT_FILE": f" {tmp_path / 'limit'}\n"}
        assert load("tool", **env).inbox_limit == 7


def as_read(load: Load, folder: Path, source: str, name: str, text: str) -> object:
    """Return the setting `name` when its variable, or its file, holds `text`."""
    if source == "file":
        (folder / name).write_text(text, encoding="utf-8", newline="")
        name, text = f"{name}_FILE", str(folder / name)
    value = getattr(load("tool", **{name: text}), name.removesuffix("_FILE").lower())
    return value.get_secret_value() if isinstance(value, SecretStr) else value


class TestWebConcurrency:
    @pytest.mark.parametrize(("cores", "expected"), [(1, 1), (3, 3), (64, 64), (65, 64)])
    def test_auto_is_a_process_for_each_core_that_it_may_use(
        self, load: Load, monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
    ) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(os, "cpu_count", lambda: 48)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        assert load("web", **WEB, WEB_CONCURRENCY='"AUTO"').web_concurrency == expected

    @pytest.mark.parametrize(("cores", "expected"), [(None, 1), (3, 3), (65, 64)])
    def test_auto_where_no_process_is_bound_to_cores(
        self, load: Load, monkeypatch: pytest.MonkeyPatch, cores: int | None, expected: int
    ) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        assert load("web", **WEB, WEB_CONCURRENCY="auto").web_concurrency == expected

    @pytest.mark.parametrize("value", ["0", "-1", "65", "many", "2.5", "2 3"])
    def test_what_would_serve_nobody_is_refused(self, faults: Faults, value: str) -> None:
        (line,) = faults("web", **WEB, WEB_CONCURRENCY=value)
        assert line.startswith("WEB_CONCURRENCY: Input should be ")


class TestSecrets:
    @pytest.mark.parametrize(
        ("value", "names"),
        [
            (WHSEC, ["default"]),
            (f" {WHSEC} ", ["default"]),
            (f"{WHSEC},{OTHER}", ["1", "2"]),
            (f"{WHSEC},\n {OTHER},", ["1", "2"]),
            (f"snapshot={WHSEC}, thin={OTHER}", ["snapshot", "thin"]),
            (f"{WHSEC},thin={OTHER}", ["1", "thin"]),
            (f"eu-west.1_a={WHSEC}", ["eu-west.1_a"]),
        ],
    )
    def test_names(self, load: Load, value: str, names: list[str]) -> None:
        secrets = load("web", **WEB | {"STRIPE_WEBHOOK_SECRET": value}).stripe_webhook_secret
        assert [secret.name for secret in secrets] == names
        assert [secret.key.decode() for secret in secrets] == [WHSEC, OTHER][: len(names)]

    def test_a_secret_may_end_in_an_equals_sign(self, load: Load) -> None:
        for value in (f"{WHSEC}==", f"a={WHSEC}=="):
            (secret,) = load("web", **WEB | {"STRIPE_WEBHOOK_SECRET": value}).stripe_webhook_secret
            assert secret.key.decode() == f"{WHSEC}=="

    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            (" ", "missing. Set it to the signing secret"),
            (",", "is empty"),
            ("None", "'default' is not a signing secret"),
            ("changeme", "'default' is not a signing secret"),
            ("whsec_", "'default' is not a signing secret"),
            (WHSEC[:-1], "'default' is not a signing secret"),
            (f"whsec_{'x' * 32}", "'default' is not a signing secret"),
            ("whsec_your_signing_secret_", "'default' is not a signing secret"),
            (f"WHSEC_{WHSEC[6:]}", "'default' is not a signing secret"),
            (f"{WHSEC} {OTHER}", "'default' is not a signing secret"),
            (f"{WHSEC[:-1]}é", "'default' is not a signing secret"),
            ("sk_test_51Hb7ZkLdIwHu7ix51Hb7ZkLdIwHu7ix", "'default' is not a signing secret"),
            (f"{WHSEC},whsec_short", "'2' is not a signing secret"),
            (f"a={WHSEC},b=whsec_short", "'b' is not a signing secret"),
            (f"a={WHSEC},a={OTHER}", "two secrets have the same name"),
            (f"2={WHSEC},{OTHER}", "two secrets have the same name"),
            (f"my name={WHSEC}", "the name of secret 1"),
            (f"={WHSEC}", "the name of secret 1"),
            (f"{WHSEC}={OTHER}", "the name of secret 1"),
        ],
    )
    def test_weak_or_unreadable(self, faults: Faults, value: str, fault: str) -> None:
        (line,) = faults("web", **WEB | {"STRIPE_WEBHOOK_SECRET": value})
        assert line.startswith("STRIPE_WEBHOOK_SECRET: ")
        assert fault in line


class TestLivemode:
    @pytest.mark.parametrize(
        ("env", "livemode"),
        [
            ({}, None),
            ({"STRIPE_API_KEY": "sk_test_51Hb"}, False),
            ({"STRIPE_API_KEY": "rk_live_51Hb"}, True),
            ({"STRIPE_SECRET_KEY": "sk_live_51Hb"}, True),
            ({"STRIPE_API_KEY": "sk_test_51_live_"}, False),
            ({"STRIPE_API_KEY": "sk_test_51Hb", "STRIPE_LIVEMODE": "0"}, False),
            ({"STRIPE_API_KEY": "sk_live_51Hb", "STRIPE_LIVEMODE": "1"}, True),
            ({"STRIPE_API_KEY": "sk_org_live_51Hb"}, True),
            ({"STRIPE_API_KEY": "sk_org_51Hb", "STRIPE_LIVEMODE": "1"}, True),
            ({"STRIPE_LIVEMODE": "0", "STRIPE_RESTRICTED_KEY": "sk_org_51Hb"}, False),
            ({"STRIPE_LIVEMODE": "true"}, True),
        ],
    )
    def test_as_set_else_as_the_key_says(
        self, load, env: dict[str, str], livemode: bool | None
    ) -> None:
        assert load("tool", **env).livemode is livemode

    def test_web_must_know(self, faults: Faults) -> None:
        (line,) = faults("web", STRIPE_WEBHOOK_SECRET=WHSEC)
        assert line.startswith("STRIPE_LIVEMODE: set it to 1 or 0")

    @pytest.mark.parametrize(
        ("env", "names"),
        [
            ({"STRIPE_API_KEY": "sk_test_51Hb", "STRIPE_LIVEMODE": "1"}, ["STRIPE_LIVEMODE"]),
            ({"STRIPE_API_KEY": "rk_live_51Hb", "STRIPE_LIVEMODE": "0"}, ["STRIPE_LIVEMODE"]),
            ({"STRIPE_API_KEY": "sk_org_test_51Hb", "STRIPE_LIVEMODE": "1"}, ["STRIPE_LIVEMODE"]),
            ({"STRIPE_API_KEY": "sk_org_51Hb"}, ["STRIPE_LIVEMODE"]),
            (
                {"STRIPE_API_KEY": "sk_live_51Hb", "STRIPE_RESTRICTED_KEY": "rk_test_51Hb"},
                ["STRIPE_RESTRICTED_KEY"],
            ),
            (
                {"STRIPE_LIVEMODE": "0", "STRIPE_RESTRICTED_KEY": "rk_live_51Hb"},
                ["STRIPE_RESTRICTED_KEY"],
            ),
            (
                {
                    "STRIPE_API_KEY": "sk_test_51Hb",
                    "STRIPE_LIVEMODE": "1",
                    "STRIPE_RESTRICTED_KEY": "rk_live_51Hb",
                },
                ["STRIPE_LIVEMODE", "STRIPE_RESTRICTED_KEY"],
            ),
        ],
    )
    def test_keys_of_another_mode_are_refused(self, faults: Faults, env, names) -> None:
        found = faults("tool", **env)
        assert [line.partition(":")[0] for line in found] == names
        assert not any(value in line for line in found for value in env.values() if "51Hb" in value)


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path: Path) -> File:
        def file(content: str | bytes) -> str:
            path = tmp_path / str(len(list(tmp_path.iterdir())))
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            return str(path)

        return file

    def test_every_setting_can_come_from_a_file(self, load: Load, file: File) -> None:
        settings = load(
            "web",
            STRIPE_WEBHOOK_SECRET_FILE=file(f"{WHSEC}\n"),
            STRIPE_SECRET_KEY_FILE=file("sk_live_51Hb7ZkLdIwHu7ix\n"),
            REDIS_URL_FILE=file("redis://:p@10.0.0.1/0\r\n"),
            INBOX_LIMIT_FILE=file("7"),
            HANDLERS_FILE=file("a,b"),
        )
        assert settings.stripe_webhook_secret == (Secret("default", WHSEC.encode()),)
        assert settings.livemode is True
        assert settings.redis_url.get_secret_value() == "redis://:p@10.0.0.1/0"
        assert settings.inbox_limit == 7
        assert settings.handlers == ("a", "b")

    def test_a_worker_with_its_key_in_a_file(self, load: Load, file: File) -> None:
        for name in ("STRIPE_API_KEY_FILE", "STRIPE_SECRET_KEY_FILE"):
            assert load("worker", **{name: file("rk_test_51Hb7ZkLdIwHu7ix")}).livemode is False

    @pytest.mark.parametrize("name", VALUES)
    def test_variable_and_file_have_to_agree(
        self, load: Load, faults: Faults, file: File, name: str
    ) -> None:
        value, _ = VALUES[name]
        assert load("tool", **{name: f" {value}", f"{name}_FILE": file(f"{value}\n")})
        (line,) = faults("tool", **{f"{name}_FILE": file(f"{MARKER}\n")})
        assert line == f"{name}: is given, and {name}_FILE holds another value: leave one out"

    def test_the_first_of_two_names_counts(self, load: Load, file: File) -> None:
        env = {"STRIPE_SECRET_KEY": "sk_test_51Hb", "STRIPE_API_KEY_FILE": file("sk_live_51Hb")}
        assert load("tool", **env).livemode is True

    @pytest.mark.parametrize("name", VALUES)
    def test_a_file_may_be_a_pipe(self, load: Load, name: str) -> None:
        value, meant = VALUES[name]
        reader, writer = os.pipe()
        try:
            os.write(writer, value.encode())
            os.close(writer)
            settings = load("tool", **{f"{name}_FILE": f"/dev/fd/{reader}"})
        finally:
            os.close(reader)
        read = getattr(settings, name.lower())
        assert (read.get_secret_value() if isinstance(read, SecretStr) else read) == meant

    @pytest.mark.parametrize("kind", ["absent", "folder", "bytes", "long"])
    @pytest.mark.parametrize("name", VALUES)
    def test_a_file_that_cannot_be_read(
        self, faults: Faults, file: File, tmp_path: Path, name: str, kind: str
    ) -> None:
        path = {
            "absent": str(tmp_path / "absent"),
            "folder": str(tmp_path),
            "bytes": file(b"\xff" + MARKER.encode()),
            "long": "/" + 5000 * "x",
        }[kind]
        (line,) = faults("tool", **{f"{name}_FILE": path})
        assert line.startswith(f"{name}_FILE: cannot be read (")
        assert MARKER not in line

    @pytest.mark.parametrize("inside", ["\0", "\x1b[31m", "\x7f", "\x85"], ids=ascii)
    @pytest.mark.parametrize("name", VALUES)
    def test_control_characters(self, faults: Faults, file: File, name: str, inside: str) -> None:
        (line,) = faults("tool", **{f"{name}_FILE": file(f"{MARKER}{inside}{MARKER}")})
        assert line.startswith(f"{name}: holds a control character")
        assert MARKER not in line

    @pytest.mark.parametrize("name", VALUES)
    def test_bytes_that_are_no_utf_8(self, faults: Faults, name: str) -> None:
        (line,) = faults("tool", **{name: os.fsdecode(b"\xff" + MARKER.encode())})
        assert line.startswith(f"{name}: holds a control character, or is not UTF-8")

    def test_an_empty_file_is_no_secret(self, faults: Faults, file: File) -> None:
        (line,) = faults("web", STRIPE_WEBHOOK_SECRET_FILE=file("\n"), STRIPE_LIVEMODE="0")
        assert line.startswith("STRIPE_WEBHOOK_SECRET: missing. Set it to the signing secret")

    def test_unreadable_files(self, faults: Faults, file: File, tmp_path: Path) -> None:
        lines = faults(
            "web",
            STRIPE_WEBHOOK_SECRET_FILE=str(tmp_path / "absent"),
            STRIPE_SECRET_KEY_FILE=str(tmp_path),
            REDIS_URL_FILE=file(b"\xff\xfe"),
            INBOX_LIMIT="many",
        )
        assert lines == [
            "STRIPE_WEBHOOK_SECRET_FILE: cannot be read (FileNotFoundError)",
            "STRIPE_SECRET_KEY_FILE: cannot be read (IsADirectoryError)",
            "REDIS_URL_FILE: cannot be read (UnicodeDecodeError)",
            "INBOX_LIMIT: Input should be a valid integer, unable to parse string as an integer",
        ]


MARKER = "Zyxmarker"
WRONG = {
    "STRIPE_WEBHOOK_SECRET": f"whsec_{MARKER}",
    "STRIPE_API_KEY": f"pk_live_{MARKER}",
    "STRIPE_RESTRICTED_KEY": f"sk_live_{MARKER}",
    "STRIPE_LIVEMODE": f"{MARKER}",
    "STRIPE_CONNECTED_ACCOUNTS": MARKER,
    "STRIPE_API_BASE": f"http://:{MARKER}@127.0.0.1:1",
    "HTTPS_PROXY": MARKER,
    "STRIPE_CA_BUNDLE": f"/{MARKER}",
    "STRIPE_API_RATE": MARKER,
    "STRIPE_WEBHOOK_TOLERANCE": "0",
    "DRAIN_SECONDS": MARKER,
    "REDIS_URL": f"http://:{MARKER}@127.0.0.1/0",
    "REDIS_TLS_VERIFY": MARKER,
    "REDIS_VOUCH_FOR": f"primary,{MARKER}",
    "ACCEPT_REDIS_LOSS": MARKER,
    "INBOX_LIMIT": "0",
    "RETENTION_DAYS": MARKER,
    "REOPEN_DEAD_ON_REDELIVERY": MARKER,
    "AUDIT": MARKER,
    "IDENTITY_DATABASE": f"mysql://:{MARKER}@db/shop",
    "FORWARD_TO": f"ftp://{MARKER}",
    "FORWARD_SECRET": f"whsec_{MARKER}",
    "FORWARD_PRIVATE": MARKER,
    "WORKER_CONCURRENCY": MARKER,
    "CONSOLE_PASSWORD_HASH": f"ann={MARKER}",
    "CONSOLE_USER_HEADER": f"X {MARKER}",
    "CONSOLE_PROXIES": f"10.0.0.1,{MARKER}",
    "WEB_CONCURRENCY": MARKER,
    "PORT": MARKER,
    "LOG_LEVEL": MARKER,
    "LOG_FORMAT": MARKER,
    "STRIPE_LOG": "debug",
}
# Of these, any text is one: who reads it says what is wrong with it.
TEXTS = {
    *("NO_PROXY", "CONSOLE_OPERATORS", "HANDLERS", "OTEL_EXPORTER_OTLP_ENDPOINT", "SENTRY_DSN"),
}
# The least and the most, and what is beyond them; None where there is no most.
LIMITS = {
    "STRIPE_API_RATE": (("-1", "0"), None),
    "STRIPE_WEBHOOK_TOLERANCE": (("0", "1"), ("3600", "3601")),
    "DRAIN_SECONDS": (("-0.1", "0"), ("10", "10.1")),
    "INBOX_LIMIT": (("0", "1"), None),
    "RETENTION_DAYS": (("3", "4"), ("400", "401")),
    "WORKER_CONCURRENCY": (("0", "1"), ("200", "201")),
    "PORT": (("0", "1"), ("65535", "65536")),
    "WEB_CONCURRENCY": (("0", "1"), ("64", "65")),
}
DEFAULTS = {
    "stripe_webhook_secret": (),
    "stripe_api_key": None,
    "stripe_restricted_key": None,
    "stripe_livemode": None,
    "stripe_connected_accounts": False,
    "stripe_api_base": "https://api.stripe.com",
    "https_proxy": None,
    "no_proxy": "",
    "stripe_ca_bundle": None,
    "stripe_api_rate": None,
    "stripe_webhook_tolerance": 300,
    "drain_seconds": 5,
    "redis_url": SecretStr("redis://127.0.0.1:6379/0"),
    "redis_tls_verify": True,
    "redis_vouch_for": (),
    "accept_redis_loss": False,
    "inbox_limit": None,
    "retention_days": 35,
    "reopen_dead_on_redelivery": False,
    "audit": True,
    "identity_database": None,
    "forward_to": (),
    "forward_secret": None,
    "forward_private": False,
    "handlers": (),
    "worker_concurrency": 20,
    "console_password_hash": (),
    "console_user_header": "",
    "console_proxies": (),
    "console_operators": (),
    "port": None,
    "web_concurrency": 2,
    "log_level": "info",
    "log_format": "auto",
    "otel_exporter_otlp_endpoint": "",
    "sentry_dsn": None,
    "stripe_log": "",
}


def test_the_defaults(load: Load) -> None:
    assert dict(load("tool")) == DEFAULTS


class TestFaults:
    def test_the_table_is_whole(self) -> None:
        assert {name.lower() for name in WRONG.keys() | TEXTS} == set(Settings.model_fields)
        numbers = {name for name, (_, value) in VALUES.items() if type(value) in (int, float)}
        assert set(LIMITS) == numbers

    def test_nothing_set(self, faults: Faults) -> None:
        assert [line.partition(":")[0] for line in faults("web")] == [
            "STRIPE_WEBHOOK_SECRET",
            "STRIPE_LIVEMODE",
        ]

    def test_a_worker_without_its_key(self, faults: Faults) -> None:
        (line,) = faults("worker", **WEB)
        assert line.startswith("STRIPE_API_KEY: missing. Set it to a key that may read Identity")

    @pytest.mark.parametrize("role", get_args(Role))
    def test_all_in_one_message(self, faults: Faults, role: Role) -> None:
        lines = faults(role, **WRONG)
        assert {line.partition(":")[0] for line in lines} == set(WRONG)
        assert len(lines) == len(WRONG)

    def test_the_missing_beside_the_wrong(self, faults: Faults) -> None:
        lines = faults("web", INBOX_LIMIT="many")
        assert [line.partition(":")[0] for line in lines] == [
            "INBOX_LIMIT",
            "STRIPE_WEBHOOK_SECRET",
            "STRIPE_LIVEMODE",
        ]

    @pytest.mark.parametrize("name", WRONG)
    def test_each_alone(self, faults: Faults, name: str) -> None:
        (line,) = faults("web", **WEB | WORKER | {name: WRONG[name]})
        assert line.startswith(f"{name}: ")

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{MARKER}:{MARKER}/1@127.0.0.1:6379/0",
            f"rediss://u:{MARKER}@127.0.0.1:{MARKER}",
            "redis://127.0.0.1:99999",
            f"//{MARKER}",
        ],
    )
    def test_redis_urls(self, faults: Faults, url: str) -> None:
        (line,) = faults("web", **WEB, REDIS_URL=url)
        assert line.startswith("REDIS_URL: ")
        assert MARKER not in line

    @pytest.mark.parametrize("name", LIMITS)
    def test_limits(self, load: Load, faults: Faults, name: str) -> None:
        (below, least), upper = LIMITS[name]
        beyond, within = [below, "nan"], [least]
        if upper:
            within.append(upper[0])
            beyond.append(upper[1])
        for value in within:
            assert getattr(load("web", **WEB, **{name: value}), name.lower()) == float(value)
        for value in beyond:
            (line,) = faults("web", **WEB, **{name: value})
            assert line.startswith(f"{name}: Input should be ")

    @pytest.mark.parametrize(
        ("url", "fault"),
        [
            (f"postgres://:{MARKER}@db/shop", "write postgresql+psycopg://"),
            (f"mysql://:{MARKER}@db/shop", "should start with postgresql+psycopg://"),
            (MARKER, "should start with postgresql+psycopg://"),
            (f"postgresqls://:{MARKER}@db/shop", "should start with postgresql+psycopg://"),
            (f"postgresql+asyncpg://:{MARKER}@db/shop", "names a driver for asyncio"),
            ("sqlite+aiosqlite:////data/x.db", "names a driver for asyncio"),
            *(
                (url, "is a database in memory: name a file")
                for url in (
                    *("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://"),
                    *("sqlite:///?timeout=3", "sqlite:///file::memory:?cache=shared&uri=true"),
                    "sqlite:///file:x?mode=memory&uri=true",
                )
            ),
        ],
    )
    def test_databases(self, faults: Faults, url: str, fault: str) -> None:
        (line,) = faults("worker", **WORKER, IDENTITY_DATABASE=url)
        assert line.startswith("IDENTITY_DATABASE: ")
        assert fault in line
        assert MARKER not in line

    @pytest.mark.parametrize(
        ("urls", "fault"),
        [
            (f"https://a.example,{MARKER}", "URL 2 should start with https:// and a host"),
            (f"https:///{MARKER}", "URL 1 should start with https:// and a host"),
            (f"ftp://a.example/{MARKER}", "URL 1 should start with https://"),
            (f"https://u:{MARKER}@a.example", "URL 1 may hold no user"),
            (f"https://ä.example/{MARKER}", "URL 1 may hold no blanks, and only ASCII"),
            (f"https://a.example/x {MARKER}", "URL 1 may hold no blanks"),
            (f"https://a.example/#{MARKER}", "URL 1 may hold no user, password or #fragment"),
            (f"https://a.example:{MARKER}", "URL 1 cannot be read"),
            (f"https://[{MARKER}", "URL 1 cannot be read"),
            (f"https://a.example/{MARKER},https://A.example/2", "the same host and port"),
            (f"http://a.example/{MARKER}", "should start with https:// (FORWARD_PRIVATE=1 allows"),
            (f"HTTP://a.example/{MARKER}", "should start with https:// (FORWARD_PRIVATE=1 allows"),
            (f"hTTp://a.example/{MARKER}", "should start with https:// (FORWARD_PRIVATE=1 allows"),
            (f"https://b.example,http://a.example/{MARKER}", "should start with https:// (FORWARD"),
            (f"http://a.example/{MARKER},https://b.example", "should start with https:// (FORWARD"),
            (f"https://./{MARKER}", "URL 1 cannot be read: its host is no name"),
            (f"https://{MARKER}..example", "URL 1 cannot be read: its host is no name"),
            (f"https://a.example:0/{MARKER}", "URL 1 cannot be read: its port is no number"),
            (f"https://a.example/{MARKER},https://a.example.", "the same host and port"),
            (f"https://a.example/{MARKER},https://a.example:443", "the same host and port"),
        ],
    )
    def test_urls_to_forward_to(self, faults: Faults, urls: str, fault: str) -> None:
        given = {"FORWARD_TO": urls, "FORWARD_SECRET": FORWARD_SECRET}
        (line,) = faults("worker", **WORKER, **given)
        assert line.startswith("FORWARD_TO: ")
        assert fault in line
        assert MARKER not in line

    @pytest.mark.parametrize(
        ("url", "fault"),
        [
            (MARKER, "should be a URL such as http://sandbox:12111"),
            (f"{MARKER}:80", "should be a URL such as http://sandbox:12111"),
            (f"ftp://{MARKER}", "should be a URL such as http://sandbox:12111"),
            (f"http:///{MARKER}", "should be a URL such as http://sandbox:12111"),
            (f"http://[{MARKER}", "its host is no name and no address"),
            (f"http://${MARKER}:1", "its host is no name and no address"),
            (f"http://{MARKER}..x", "its host is no name and no address"),
            (f"http://{MARKER}:0", "its port is no number from 1 to 65535"),
            (f"http://{MARKER}\nx", "it holds a tab or a line break"),
            (f"http://u:{MARKER}@h", "without user, password, ? and #"),
            (f"http://h?{MARKER}", "without user, password, ? and #"),
        ],
    )
    def test_addresses_of_the_api(self, faults: Faults, url: str, fault: str) -> None:
        (line,) = faults("worker", **WORKER, STRIPE_API_BASE=url)
        assert line.startswith("STRIPE_API_BASE: ")
        assert fault in line
        assert MARKER not in line

    @pytest.mark.parametrize(
        "url", ["h:1", "http://", "http://h:0", "http://a..b", "http://h\n:1", "http://$H:1"]
    )
    def test_addresses_of_a_proxy(self, faults: Faults, url: str) -> None:
        (line,) = faults("worker", **WORKER, HTTPS_PROXY=url)
        assert line.startswith("HTTPS_PROXY: is not the URL of a proxy: http://host:port")

    @pytest.mark.parametrize(
        "value",
        [
            *("whsec_short", "whsec_%%%", "whsec_", FORWARD_SECRET[6:], MARKER),
            *(f"old{FORWARD_SECRET}", f"whsec_{FORWARD_SECRET}"),
        ],
    )
    def test_secrets_to_forward_with(self, faults: Faults, value: str) -> None:
        given = {"FORWARD_TO": "https://a.example", "FORWARD_SECRET": value}
        (line,) = faults("worker", **WORKER, **given)
        assert line.startswith("FORWARD_SECRET: should be whsec_ and the base64")

    def test_forwarding_needs_a_secret(self, faults: Faults, load: Load) -> None:
        for empty in ({}, {"FORWARD_SECRET": ""}, {"FORWARD_SECRET": " '' "}):
            (line,) = faults("worker", **WORKER, FORWARD_TO="https://a.example", **empty)
            assert line.startswith("FORWARD_SECRET: missing. Set it to")
        assert load("web", **WEB, FORWARD_TO="https://a.example").forward_to, "not web's secret"


class TestNothingShown:
    def test_in_faults(self, load: Load) -> None:
        with pytest.raises(SettingsError) as caught:
            load("web", **WRONG)
        assert MARKER not in "".join(traceback.format_exception(caught.value))
        assert MARKER not in repr(caught.value)

    def test_in_settings(self, load: Load) -> None:
        settings = load(
            "web",
            STRIPE_WEBHOOK_SECRET=f"a={WHSEC}{MARKER},b={OTHER}{MARKER}",
            STRIPE_API_KEY=f"rk_test_{MARKER}",
            STRIPE_RESTRICTED_KEY=f"rk_test_{MARKER}",
            REDIS_URL=f"redis://:{MARKER}@127.0.0.1/0",
            IDENTITY_DATABASE=f"postgresql://:{MARKER}@db/shop",
        )
        for text in (repr(settings), str(settings), f"{settings}", f"{settings.__dict__}"):
            assert "stripe_api_key" in text
            assert MARKER not in text


@pytest.mark.parametrize(
    ("env", "rate"),
    [
        ({"STRIPE_API_KEY": "sk_live_abcdefgh"}, 20),
        ({"STRIPE_API_KEY": "sk_test_abcdefgh"}, 20),
        ({"STRIPE_API_KEY": "sk_live_abcdefgh", "STRIPE_API_BASE": "https://api.stripe.com/"}, 20),
        ({"STRIPE_API_KEY": "sk_test_abcdefgh", "STRIPE_API_BASE": "http://127.0.0.1:1"}, 0),
        ({"STRIPE_API_KEY": "sk_test_abcdefgh", "STRIPE_API_RATE": "7"}, 7),
        ({"STRIPE_API_KEY": "sk_live_abcdefgh", "STRIPE_API_RATE": "0"}, 0),
    ],
)
def test_the_rate_of_calls_stays_below_stripes_limit(monkeypatch, env, rate) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert Settings.load("worker").api_rate == rate
