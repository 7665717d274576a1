"""Every setting of the service, declared once: name, type, default, what it is for.

Read from the environment; `<NAME>_FILE` names a file that holds the value instead, as Docker
and Kubernetes secrets do. One rule holds for every value, wherever it comes from: whitespace, a
byte-order mark and one pair of quotes around it are dropped, and what is then empty counts as not
set. All faults are reported in one error, none shows a secret.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import ssl
import string
import sys
from pathlib import Path
from typing import Literal, Self
from unicodedata import category
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

from service import redis_url, urls
from service.console import people
from service.signature import TOLERANCE, Secret

Role = Literal["web", "worker", "tool"]

VOUCHABLE = ("append-only", "eviction", "memory", "primary")
"""What the operator may vouch for in place of Redis (service/findings.py)."""

API_RATE = 20
"""Calls of Stripe's API a second, where none is set: four fifths of 25."""

SENT_AGAIN = 30
"""Days for which Stripe sends and lists events again (https://docs.stripe.com/webhooks)."""
NO_FORWARD_SECRET = (  # the fault, no secret
    "FORWARD_SECRET: missing. Set it to whsec_ and the base64 of 32 random bytes"  # noqa: S105
)

_STRIPE = "https://api.stripe.com"
_WEBHOOK_SECRET = re.compile(r"whsec_[A-Za-z0-9+/=_-]{24,}\Z")
ORGANIZATION_KEY = "sk_org_"
"""What the key of an organization begins with, whatever its rights and its mode
(https://docs.stripe.com/keys/organization-api-keys)."""
_API_KEY = re.compile(r"((sk|rk)_(test|live)|sk_org)_[A-Za-z0-9_]{4,}\Z")
_MODE = re.compile(r"(?:[sr]k|sk_org)_(test|live)_")
_NAME = re.compile(r"(?!whsec_)[A-Za-z0-9_.-]{1,32}\Z")  # it is shown: never a secret itself
_AROUND = string.whitespace + "\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}\N{BYTE ORDER MARK}"

# What a role cannot run without. The web process needs no API key, the worker no signing secret:
# give each only its own.
_NEEDS: dict[Role, dict[str, str]] = {
    "web": {"stripe_webhook_secret": "the signing secret of the webhook endpoint, whsec_..."},
    "worker": {"stripe_api_key": "a key that may read Identity: rk_... (better) or sk_..."},
    "tool": {},
}


class SettingsError(Exception):
    """The environment is no valid configuration. The text lists every fault, one per line."""


class Settings(BaseModel):
    """The configuration of a process."""

    model_config = ConfigDict(
        alias_generator=str.upper, populate_by_name=True, frozen=True, hide_input_in_errors=True
    )

    stripe_webhook_secret: tuple[Secret, ...] = Field(
        default=(),
        description="Signing secret of the webhook endpoint: one, several separated by commas"
        " (while rolling, or for several endpoints), or name=whsec_... pairs.",
    )
    stripe_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("STRIPE_API_KEY", "STRIPE_SECRET_KEY"),
        description="Key with which the workers fetch sessions and reports. A restricted key"
        " with read access to Identity and Events is enough.",
    )
    stripe_restricted_key: SecretStr | None = Field(
        default=None,
        description="Restricted key for handlers that need sensitive fields (date of birth,"
        " document number). Only those handlers get what it fetches.",
    )
    stripe_livemode: bool | None = Field(
        default=None,
        description="Process live-mode events (1) or test-mode events (0). Default: what"
        " STRIPE_API_KEY is.",
    )
    stripe_connected_accounts: bool = Field(
        default=False,
        description="Set to 1 on a platform: reconciliation then also lists the connected accounts,"
        " so that they are known after Redis lost its data. Needs a key that may read accounts.",
    )
    stripe_api_base: str = Field(
        default=_STRIPE,
        description="Where Stripe's API is: the sandbox's address in development.",
    )
    https_proxy: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("HTTPS_PROXY", "https_proxy"),
        description="Proxy for the calls of Stripe's API, http://[user:password@]host:port. The"
        " connection through it is encrypted up to Stripe.",
    )
    no_proxy: str = Field(
        default="",
        validation_alias=AliasChoices("NO_PROXY", "no_proxy"),
        description="Hosts to which HTTPS_PROXY does not lead, separated by commas.",
    )
    stripe_ca_bundle: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("STRIPE_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
        description="File of certificates to trust in calls of Stripe's API (PEM), where a proxy"
        " opens the encryption. Default: those that Stripe's SDK brings.",
    )
    stripe_api_rate: int | None = Field(
        default=None,
        ge=0,
        description="Calls a second that all workers together make; 0 for no limit. Default: 20,"
        " four fifths of what Stripe allows of one endpoint; none on the sandbox. Raise it when"
        " Stripe has raised the limit of your account.",
    )
    stripe_webhook_tolerance: int = Field(
        default=TOLERANCE,
        ge=1,
        le=3600,
        description="Seconds a delivery's timestamp may differ from our clock, either way.",
    )
    drain_seconds: float = Field(
        default=5,
        ge=0,
        le=10,
        description="Seconds the web process goes on accepting and answering after SIGTERM, with an"
        " unready /readyz, so that load balancers leave in time.",
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="The Redis that holds inbox and queue: redis://, rediss:// or unix://. Options:"
        " ?ssl_ca_certs=/path of its issuer's certificate, ssl_certfile and ssl_keyfile of one of"
        " ours; db.",
    )
    redis_tls_verify: bool = Field(
        default=True,
        description="Set to 0 where the server's certificate is self-signed (Heroku Key-Value"
        " Store). The connection stays encrypted but is open to a man in the middle.",
    )
    redis_vouch_for: tuple[str, ...] = Field(
        default=(),
        description="What you vouch for in place of Redis, separated by commas: append-only (events"
        " outlive a restart), eviction (no event is evicted), memory (you watch how full it is),"
        " primary (it is no replica). Needed where Redis does not report it, or reports otherwise.",
    )
    accept_redis_loss: bool = Field(
        default=False,
        description="Deprecated: 1 vouches for all that REDIS_VOUCH_FOR lists one by one.",
    )
    inbox_limit: int | None = Field(
        default=None,
        ge=1,
        description="Pending events above which deliveries are answered 503, so that Stripe"
        " keeps them. One takes about 1 kB of Redis. Default: as many as take two fifths of its"
        " maxmemory; 100,000 where it has none.",
    )
    retention_days: int = Field(
        default=35,
        ge=4,
        le=400,
        description="Days a settled event is kept for. Stripe sends and lists events again for up"
        " to 30: below 31, one that comes later is handled again, and reconciliation looks back no"
        " further than this.",
    )
    reopen_dead_on_redelivery: bool = Field(
        default=False,
        description="Set to 1 to run a dead event again when Stripe delivers it again.",
    )
    audit: bool = Field(
        default=True,
        description="Whether the built-in handler audit.log_event logs a line for every event.",
    )
    identity_database: SecretStr | None = Field(
        default=None,
        description="Switches on the built-in handler database.save, which keeps where each session"
        " stands: the URL of a database, postgresql+psycopg://... or sqlite:///...",
    )
    forward_to: tuple[str, ...] = Field(
        default=(),
        repr=False,  # a path may hold a token
        description="Switches on the built-in handler forward, which posts a signed message without"
        " personal data for every event: your own URLs, separated by commas, one for each host.",
    )
    forward_secret: SecretStr | None = Field(
        default=None,
        description="Key that signs these messages (standardwebhooks.com): whsec_ and the"
        " base64 of 24 to 64 random bytes.",
    )
    forward_private: bool = Field(
        default=False,
        description="Set to 1 to forward also to private addresses (10.0.0.1, 127.0.0.1), and by"
        " http://.",
    )
    handlers: tuple[str, ...] = Field(
        default=(),
        description="Plugins by dotted path, separated by commas: package.module or"
        " package.module:object.",
    )
    worker_concurrency: int = Field(
        default=20,
        ge=1,
        le=200,
        description="Events a worker process works on at once, each on a thread, which mostly"
        " waits for Stripe, or for what a handler calls. Set to 1 if a handler is not thread-safe.",
    )
    console_password_hash: tuple[people.Person, ...] = Field(
        default=(),
        repr=False,
        description="Switches on the console at /console/ (docs/console.md) for these people:"
        " NAME=HASH, or NAME:read-only=HASH for one who may only look, separated by commas."
        " `python -m service console hash NAME` asks for a password and prints it.",
    )
    console_user_header: str = Field(
        default="",
        description="Switches on the console for whoever a proxy names in this header, such as"
        " X-Forwarded-User. The proxy has to check who they are, and to drop the header of others.",
    )
    console_proxies: tuple[str, ...] = Field(
        default=(),
        description="Addresses from which CONSOLE_USER_HEADER is believed, separated by commas:"
        " 10.0.0.7 or 10.0.0.0/24.",
    )
    console_operators: tuple[str, ...] = Field(
        default=(),
        description="Who of those named in CONSOLE_USER_HEADER may act, separated by commas. All"
        " others may only look.",
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port the web process listens on, on every address. Default: 8000, on loopback"
        " only.",
    )
    web_concurrency: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Processes that receive; auto for one per core this process may use.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error."
    )
    log_format: Literal["json", "console", "auto"] = Field(
        default="auto", description="json, console, or auto: console on a terminal, else json."
    )
    otel_exporter_otlp_endpoint: str = Field(
        default="",
        validation_alias=AliasChoices(
            "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        ),
        description="Switches on traces where the extra otel is installed (docs/operations.md):"
        " where to send them by OTLP over HTTP, http://host:4318. Other OTEL_... variables are read"
        " by OpenTelemetry itself.",
    )
    sentry_dsn: SecretStr | None = Field(
        default=None,
        description="Switches on reports of failures to Sentry, without personal data, where the"
        " extra sentry is installed (docs/operations.md).",
    )
    stripe_log: str = Field(default="", description="The SDK's own log. `debug` is refused.")

    @classmethod
    def load(cls, role: Role) -> Self:
        """Read the environment for a process of this role.

        Raises:
            SettingsError: with every fault in it.
        """
        given, faults = _read_environment()
        named = given.keys() | {fault.split(":")[0].removesuffix("_FILE") for fault in faults}
        settings = None
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            faults += [
                f"{_env_name(str(fault['loc'][0]))}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_input=False, include_url=False)
            ]
        for name, sentence in _NEEDS[role].items():
            if not named & set(_env_names(name)):
                faults.append(f"{_env_name(name)}: missing. Set it to {sentence}")
        if role == "web" and not named & {"STRIPE_LIVEMODE", *_env_names("stripe_api_key")}:
            faults.append("STRIPE_LIVEMODE: set it to 1 or 0, or give STRIPE_API_KEY")
        if settings is not None:
            faults += [*settings._mode_faults(), *settings._forward_faults(role, named)]
            if role == "web":
                faults += settings._console_faults()
        if faults or settings is None:
            raise SettingsError("\n".join(["the settings are not complete:", *faults]))
        return settings

    @property
    def given_up(self) -> str | None:
        """What is given up by a setting that has its reasons, in a sentence; None for nothing."""
        if self.retention_days > SENT_AGAIN:
            return None
        return (
            f"RETENTION_DAYS is {self.retention_days}: an event that Stripe sends again later than"
            f" that is handled again, and what was missed is brought back for {self.retention_days}"
            f" days instead of {SENT_AGAIN}"
        )

    @property
    def keep(self) -> int:
        """Seconds a settled event is known for."""
        return self.retention_days * 86_400

    @property
    def vouched(self) -> frozenset[str]:
        """What the operator vouches for."""
        return frozenset(VOUCHABLE if self.accept_redis_loss else self.redis_vouch_for)

    @property
    def livemode(self) -> bool | None:
        """Which events are processed: as set, else the mode of the API key."""
        if self.stripe_livemode is not None or self.stripe_api_key is None:
            return self.stripe_livemode
        return _is_live(self.stripe_api_key)

    def _console_faults(self) -> list[str]:
        if self.console_user_header:
            missing = "CONSOLE_PROXIES: missing. Set it to the address of your proxy"
            return [] if self.console_proxies else [missing]
        return [
            f"{_env_name(name)}: without CONSOLE_USER_HEADER it does nothing: set that, or take"
            " this out"
            for name in ("console_proxies", "console_operators")
            if getattr(self, name)
        ]

    def _mode_faults(self) -> list[str]:
        """Return what is wrong with the modes of the keys, as far as their prefixes tell."""
        key, restricted = _is_live(self.stripe_api_key), _is_live(self.stripe_restricted_key)
        faults = []
        if None not in {self.stripe_livemode, key} and self.stripe_livemode != key:
            faults.append(
                f"STRIPE_LIVEMODE: is {int(not key)}, but STRIPE_API_KEY is of {_mode(key)} mode:"
                " no event would find its session"
            )
        expected = self.livemode if key is None else key
        if None not in {restricted, expected} and restricted != expected:
            faults.append(
                f"STRIPE_RESTRICTED_KEY: is of {_mode(restricted)} mode, but events of"
                f" {_mode(expected)} mode are processed"
            )
        if key is None and self.stripe_api_key is not None and self.stripe_livemode is None:
            faults.append(
                "STRIPE_LIVEMODE: set it to 1 or 0: STRIPE_API_KEY does not tell its mode"
            )
        return faults

    def _forward_faults(self, role: Role, named: set[str]) -> list[str]:
        """Return what is wrong with the settings of `forward` together."""
        faults = []
        # Only workers are given the secret; other roles may see the URLs.
        if role == "worker" and self.forward_to and "FORWARD_SECRET" not in named:
            faults.append(NO_FORWARD_SECRET)
        plain = any(urlsplit(url).scheme == "http" for url in self.forward_to)
        if plain and not self.forward_private:
            faults.append("FORWARD_TO: should start with https:// (FORWARD_PRIVATE=1 allows http)")
        return faults

    @property
    def api_rate(self) -> int:
        """Calls of Stripe's API a second: as set, else below Stripe's limits, 0 for none.

        Stripe allows 25 calls a second of each endpoint, in live mode, too, where an account has
        100 in all (https://docs.stripe.com/rate-limits). An event takes one of the session's.
        """
        if self.stripe_api_rate is not None:
            return self.stripe_api_rate
        if self.stripe_api_base != _STRIPE:
            return 0
        return API_RATE

    @field_validator("stripe_webhook_secret", mode="before")
    @classmethod
    def _parse_secrets(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        secrets: list[Secret] = []
        parts = [part.strip() for part in value.split(",") if part.strip()]
        for number, part in enumerate(parts, 1):
            # A secret may end in "=" itself: only what stands before `=whsec_` is a name.
            name, named, rest = part.partition("=whsec_")
            key = "whsec_" + rest if named else part
            name = name if named else ("default" if len(parts) == 1 else str(number))
            if not _NAME.match(name):
                raise ValueError(f"the name of secret {number} may hold letters, digits, . _ -")
            # A secret of few different characters is a placeholder, not a secret.
            if not _WEBHOOK_SECRET.match(key) or len(set(key)) < 12:
                raise ValueError(
                    f"secret {name!r} is not a signing secret: copy it from the webhook endpoint"
                    " in Stripe's Dashboard (whsec_ and at least 24 characters)"
                )
            secrets.append(Secret(name, key.encode()))
        if not secrets:
            raise ValueError("is empty: without a signing secret anyone could post events")
        if len({secret.name for secret in secrets}) < len(secrets):
            raise ValueError("two secrets have the same name")
        return tuple(secrets)

    @field_validator("stripe_api_base")
    @classmethod
    def _check_api_base(cls, value: str) -> str:
        fault = "should be a URL such as http://sandbox:12111"
        try:
            parts = urls.split(value)
        except ValueError as error:
            raise ValueError(f"{fault}: {error}") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(fault)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"{fault}, without user, password, ? and #")
        return value.rstrip("/")

    @field_validator("forward_to")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        hosts = []
        for number, url in enumerate(value, 1):
            try:
                parts = urls.split(url)
                default = 443 if parts.scheme == "https" else 80
                hosts.append(((parts.hostname or "").rstrip("."), parts.port or default))
            except ValueError as fault:
                raise ValueError(f"URL {number} cannot be read: {fault}") from None
            if parts.scheme not in {"http", "https"} or not hosts[-1][0]:
                raise ValueError(f"URL {number} should start with https:// and a host")
            if not re.fullmatch(r"[!-~]+", url):
                raise ValueError(f"URL {number} may hold no blanks, and only ASCII (xn--..., %20)")
            if "@" in parts.netloc or parts.fragment:
                raise ValueError(f"URL {number} may hold no user, password or #fragment")
        if len(set(hosts)) < len(hosts):
            raise ValueError("two URLs have the same host and port: give one of them")
        return value

    @field_validator("forward_secret")
    @classmethod
    def _check_forward_secret(cls, value: SecretStr | None) -> SecretStr | None:
        before, prefix, text = (value.get_secret_value() if value else "").rpartition("whsec_")
        try:
            size = len(base64.b64decode(text, validate=True))
        except ValueError:
            size = 0
        if value and (before or not prefix or not 24 <= size <= 64):
            raise ValueError("should be whsec_ and the base64 of 24 to 64 random bytes")
        return value

    @field_validator("console_password_hash", mode="before")
    @classmethod
    def _parse_people(cls, value: object) -> object:
        return people.parse(value) if isinstance(value, str) else value

    @field_validator("console_user_header")
    @classmethod
    def _check_header(cls, value: str) -> str:
        # The server drops headers with an underscore: it could pose as a dash.
        if value and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", value):
            raise ValueError("should be the name of a header, such as X-Forwarded-User")
        return value

    @field_validator("console_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, part in enumerate(value, 1):
            try:
                ipaddress.ip_network(part)
            except ValueError:
                raise ValueError(f"entry {number} is no address or network") from None
        return value

    @field_validator(
        *("handlers", "forward_to", "redis_vouch_for", "console_proxies", "console_operators"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("redis_vouch_for")
    @classmethod
    def _check_vouched(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(VOUCHABLE):
            raise ValueError(f"may hold {', '.join(VOUCHABLE)}, separated by commas")
        return value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("web_concurrency", mode="before")
    @classmethod
    def _count_cores(cls, value: object) -> object:
        if not isinstance(value, str) or value.lower() != "auto":
            return value
        if sys.platform == "linux":
            cores = len(os.sched_getaffinity(0))
        else:
            cores = os.cpu_count() or 1
        return min(cores, 64)

    @field_validator("stripe_api_key", "stripe_restricted_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _API_KEY.match(value.get_secret_value()):
            raise ValueError(
                "is not an API key: it should look like rk_test_..., sk_live_... or sk_org_..."
            )
        return value

    @field_validator("stripe_restricted_key")
    @classmethod
    def _check_restricted(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("rk_", ORGANIZATION_KEY)):
            raise ValueError(
                "is not a restricted key (rk_...): Stripe shows these fields to no other"
            )
        return value

    @field_validator("identity_database")
    @classmethod
    def _check_database(cls, value: SecretStr | None) -> SecretStr | None:
        url = value.get_secret_value() if value else ""
        if url.startswith("postgres://"):  # as Heroku writes it, and SQLAlchemy does not take it
            raise ValueError("starts with postgres://: write postgresql+psycopg://")
        scheme, _, place = url.partition("://")
        if value and scheme.partition("+")[0] not in {"postgresql", "sqlite"}:
            raise ValueError("should start with postgresql+psycopg:// or sqlite:///")
        if scheme.partition("+")[2] in {"asyncpg", "aiosqlite", "psycopg_async"}:
            raise ValueError("names a driver for asyncio: write postgresql+psycopg:// or sqlite://")
        path, _, options = place.partition("?")
        in_memory = path in {"", "/"} or ":memory:" in path or "mode=memory" in options
        if scheme.startswith("sqlite") and in_memory:
            # Of each worker its own, and gone with it.
            raise ValueError(
                "is a database in memory: name a file, sqlite:////var/lib/iw/sessions.db"
            )
        return value

    @field_validator("https_proxy")
    @classmethod
    def _check_proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return value
        try:
            parts = urls.split(value.get_secret_value())
            readable = parts.scheme in {"http", "https"} and parts.hostname
        except ValueError:
            readable = False
        if not readable:
            raise ValueError(
                "is not the URL of a proxy: http://host:port, with user:password@ before the host"
                " where it asks for them, percent-encoded"
            )
        return value

    @field_validator("stripe_ca_bundle")
    @classmethod
    def _check_bundle(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=value)
            except ssl.SSLError:
                raise ValueError("holds no certificate in PEM form") from None
            except OSError as error:
                raise ValueError(f"cannot be read ({type(error).__name__})") from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        redis_url.parse(value.get_secret_value())
        return value

    @field_validator("stripe_log")
    @classmethod
    def _check_stripe_log(cls, value: str) -> str:
        if value == "debug":
            raise ValueError("=debug writes whole responses, personal data included: unset it")
        return value


def _is_live(key: SecretStr | None) -> bool | None:
    """Whether a key is of live mode, by its prefix; None where there is no key or no word of it."""
    found = _MODE.match(key.get_secret_value()) if key else None
    return None if found is None else found[1] == "live"


def _mode(live: bool | None) -> str:
    return "live" if live else "test"


def clean(value: str) -> str:
    """Strip blanks, a byte-order mark and one pair of quotes from around a value."""
    value = value.strip(_AROUND)
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1].strip(_AROUND)
    return value


def _read_environment() -> tuple[dict[str, str], list[str]]:
    """Return the values given, by the names of their variables, and what is wrong with them.

    Each file is read once, as it may be a pipe. Of a setting with two names, the first that is
    given counts.
    """
    given: dict[str, str] = {}
    faults: list[str] = []
    for field_name in Settings.model_fields:
        for name in _env_names(field_name):
            value, file, text = clean(os.environ.get(name, "")), f"{name}_FILE", ""
            if path := clean(os.environ.get(file, "")):
                try:
                    text = clean(Path(path).read_text(encoding="utf-8"))
                except (OSError, UnicodeDecodeError) as error:
                    faults.append(f"{file}: cannot be read ({type(error).__name__})")
                    break
            if value and text and value != text:
                faults.append(f"{name}: is given, and {file} holds another value: leave one out")
                break
            value = value or text
            if any(category(each) in {"Cc", "Cs"} and each not in "\t\r\n" for each in value):
                faults.append(f"{name}: holds a control character, or is not UTF-8: write it anew")
                break
            if value:
                given[name] = value
                break
    return given, faults


def _env_names(field_name: str) -> tuple[str, ...]:
    field = Settings.model_fields.get(field_name)
    if field is not None and isinstance(field.validation_alias, AliasChoices):
        return tuple(str(choice) for choice in field.validation_alias.choices)
    return (field_name.upper(),)


def _env_name(field_name: str) -> str:
    return _env_names(field_name)[0].upper()
