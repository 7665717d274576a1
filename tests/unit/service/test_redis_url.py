"""REDIS_URL as platforms prescribe it: used whole, or refused in words that show no secret."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import (
    URL_QUERY_ARGUMENT_PARSERS,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)

from service.redis_url import OPTIONS, parse, place
from tests.conftest import CANARY

TCP = {"connection_class": Connection, "host": "h", "port": 6379, "db": 0}

ACCEPTED = {
    "redis://h": TCP,
    "redis://h/": TCP,
    "redis://h:6379/0": TCP,
    "redis://h:7000/3": TCP | {"port": 7000, "db": 3},
    "redis://h?db=3": TCP | {"db": 3},
    "redis://h/3?db=3": TCP | {"db": 3},
    "redis://h:6379?family=0": TCP,
    "redis://:p@h": TCP | {"password": "p"},
    "redis://u:p%40%2Fq@h": TCP | {"username": "u", "password": "p@/q"},
    "redis://u:p@q:r@h": TCP | {"username": "u", "password": "p@q:r"},
    "redis://default@h": TCP | {"username": "default"},
    "redis://[::1]:7000/0": TCP | {"host": "::1", "port": 7000},
    "redis://": TCP | {"host": "localhost"},
    "redis://h.:6379": TCP | {"host": "h."},
    "redis://my_app_redis-1": TCP | {"host": "my_app_redis-1"},
    "redis://bücher.example": TCP | {"host": "bücher.example"},
    "redis://[fe80::1%25eth0]": TCP | {"host": "fe80::1%eth0"},
    "redis://:p%0A%00q@h": TCP | {"password": "p\n\0q"},
    "redis://h?db=": TCP,
    "rediss://h:1/0": TCP | {"connection_class": SSLConnection, "port": 1},
    "rediss://h?ssl_cert_reqs=required": TCP | {"connection_class": SSLConnection},
    "rediss://h?ssl_cert_reqs=CERT_REQUIRED": TCP | {"connection_class": SSLConnection},
    "unix:///run/redis.sock": {
        "connection_class": UnixDomainSocketConnection,
        "path": "/run/redis.sock",
        "db": 0,
    },
    "unix://u:p@/run/redis.sock?db=2": {
        "connection_class": UnixDomainSocketConnection,
        "path": "/run/redis.sock",
        "db": 2,
        "username": "u",
        "password": "p",
    },
}

REFUSED = {
    f"http://{CANARY}": "should start with redis://, rediss:// or unix://",
    f"redis+sentinel://{CANARY}": "names Sentinels",
    f"rediss+sentinel://:{CANARY}@a:1,b:2/main/0": "names Sentinels",
    f"SENTINEL://{CANARY}": "names Sentinels",
    f"redis-ha://{CANARY}": "should start with",
    f"redis://:{CANARY}/x@h:6379/0": "the password needs percent-encoding",
    f"redis://:{CANARY}#x@h:6379/0": "the password needs percent-encoding",
    f"redis://:{CANARY}?x@h:6379/0": "the password needs percent-encoding",
    f"redis://:{CANARY}[x@h:6379/0": "the password needs percent-encoding",
    f"redis://{CANARY}/x@h/0": "the password needs percent-encoding",
    f"redis://h?{CANARY}%20": "the password needs percent-encoding",
    f"redis://h:{CANARY}/0": "its port is no number",
    "redis://h:99999/0": "its port is no number",
    "redis://h:0": "its port is no number from 1 to 65535",
    f"redis://:{CANARY}@h1:1,h2:2/0": "it names several hosts",
    "redis://h1,h2": "it names several hosts",
    f"redis://:{CANARY}\n@h": "it holds a tab or a line break",
    "redis://h:63\n79": "it holds a tab or a line break",
    f"redis://{CANARY}..x": "its host is no name and no address",
    f"redis://{'x' * 64}": "its host is no name and no address",
    f"redis://{'x.' * 127}xx": "its host is no name and no address",
    f"redis://{CANARY}%20x": "its host is no name and no address",
    f"redis://{CANARY}%00": "its host is no name and no address",
    f"redis://${{{CANARY}}}:6379": "its host is no name and no address",
    f"redis://[{CANARY}]": "its host is no name and no address",
    f"redis://:{CANARY}@:6379": "names no host",
    f"redis://:{CANARY}%E9@h": "holds what is no UTF-8 once it is decoded",
    "redis://h?ssl_cert_reqs=required": "only rediss:// speaks TLS",
    "rediss://h?ssl_ca_certs=%00": "ssl_ca_certs: the file cannot be read (ValueError)",
    f"unix://{CANARY}/redis.sock": "has a host before the path of the socket",
    f"unix:///{'x' * 107}": "names a path that no socket can have",
    "unix:///x%00": "names a path that no socket can have",
    "unix:///": "names no socket",
    f"redis://h/{CANARY}": "names a database that is no number: redis://host:port/0",
    "redis://h/0/1": "names a database that is no number",
    "redis://h/-1": "names a database that is no number",
    "redis://h/²": "names a database that is no number",
    "redis://h/1?db=2": "names two databases",
    "redis://h?db=x": "names a database that is no number",
    "redis://h?family=4": "has the option family, which may be 0",
    "redis://h?db=1&db=1": "has the option db twice",
    "rediss://h?ssl_cert_reqs=none": "REDIS_TLS_VERIFY=0 trusts any certificate",
    "rediss://h?ssl_check_hostname=False": "has the option ssl_check_hostname: REDIS_TLS_VERIFY=0",
    "redis://h?ssl=true": "has the option ssl: a URL of rediss://",
    "redis://h?tls=true": "has the option tls: a URL of rediss://",
    f"redis://h?host={CANARY}": "has the option host: the host stands before",
    "redis://h?port=1": "has the option port: the port stands before",
    f"redis://h?username={CANARY}": "has the option username: user and password stand before",
    f"redis://h?password={CANARY}": "has the option password: user and password stand before",
    f"redis://h?pool_size={CANARY}": "has the option pool_size: leave it out",
    "redis://h?ssl_ca_certs=/x": "only rediss:// speaks TLS",
    "rediss://h?ssl_ca_certs=/absent": "ssl_ca_certs: the file cannot be read (FileNotFoundError)",
    f"rediss://h?ssl_ca_certs={__file__}": "names a file that holds no certificate",
    f"rediss://h?ssl_certfile={__file__}": "names a file that holds no certificate",
    f"rediss://h?ssl_keyfile={__file__}": "has the option ssl_keyfile, but no ssl_certfile",
    "unix://": "names no socket",
}


@pytest.mark.parametrize("url", ACCEPTED)
def test_what_is_used(url: str) -> None:
    assert parse(url) == ACCEPTED[url]


@pytest.mark.parametrize(
    ("url", "where"),
    [
        (f"redis://{CANARY}:{CANARY}@h:7000/3", "h:7000/3"),
        (f"rediss://:{CANARY}@h", "h:6379/0"),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock/2"),
    ],
)
def test_the_place_says_which_redis_and_database_and_not_who_asks(url: str, where: str) -> None:
    assert place(url) == where


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=re.escape(REFUSED[url])) as refused:
        parse(url)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("name", sorted({*URL_QUERY_ARGUMENT_PARSERS} - {*OPTIONS}))
def test_every_other_option_of_redis_py_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"^has the option {name}: "):
        parse(f"rediss://h?{name}=1")


@given(
    host=st.from_regex(r"[a-z][a-z0-9]{0,9}([.-][a-z0-9]{1,9}){0,2}", fullmatch=True),
    port=st.integers(1, 65_535),
    db=st.integers(0, 99),
    password=st.text(min_size=1),
)
def test_what_is_used_is_what_redis_py_reads(host: str, port: int, db: int, password: str) -> None:
    url = f"rediss://u:{quote(password, safe='')}@{host}:{port}/{db}"
    assert parse(url) == parse_url(url) | {"password": password}


@given(st.text(max_size=80), st.sampled_from(["redis", "rediss"]))
def test_whatever_is_taken_can_be_looked_up(text: str, scheme: str) -> None:
    """`getaddrinfo` encodes a name so, and what that raises is no error of the network."""
    with suppress(ValueError):
        made = parse(f"{scheme}://{text}")
        if ":" not in made["host"]:
            encoded = made["host"].encode("idna")
            assert encoded
            assert b" " not in encoded


def test_files_that_hold_a_certificate(certificate: Path) -> None:
    made = parse(f"rediss://h?ssl_ca_certs={certificate}")
    assert made["ssl_ca_certs"] == str(certificate)


@pytest.fixture
def certificate() -> Path:
    import certifi  # noqa: PLC0415  # some real one

    return Path(certifi.where())
