"""deploy/redis-acl.conf: the whole service runs with these users, and they can do nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from werkzeug.security import generate_password_hash

ROLES = ("web", "worker", "tool", "probe")
FORBIDDEN = [
    "CONFIG GET *",
    "CONFIG SET requirepass x",
    "FLUSHALL",
    "FLUSHDB",
    "SHUTDOWN NOSAVE",
    "MONITOR",
    "KEYS *",
    "ACL LIST",
    "ACL SETUSER web +@all",
    "REPLICAOF 127.0.0.1 1",
    "SAVE",
    "BGREWRITEAOF",
    "SLOWLOG GET",
    "CLIENT KILL TYPE normal",
    "MODULE LIST",
    "MIGRATE 127.0.0.1 1 k 0 100",
    "RESTORE iw:x 0 x",
    "FUNCTION LIST",
    "PUBLISH rq:pubsub:x {}",
    "SUBSCRIBE x",
    "GET other:application",
    "SET other:application x",
    "DEL rq:failed:identity",
    "LPUSH rq:queue:default x",
    "SORT iw:due",
    "DUMP iw:evt:x",
]


def test_the_whole_path_and_nothing_is_refused(system) -> None:
    system.settle(system.verify())
    with system.server.client() as client:
        # The session's other events may still wait for their turn.
        system.wait_until(lambda: client.zcard("iw:due") == 0)
        system.wait_until(lambda: len(list(client.scan_iter("iw:done:*"))) == 3)
    events = json.loads(system.command("service", "events", "list", "--json"))
    assert {event["state"] for event in events} == {"done"}
    system.command("service", "events", "show", events[0]["key"])
    system.command("service", "events", "show", events[0]["session"])
    system.command("service", "events", "replay", events[0]["key"], "--handler", "audit.log_event")
    system.command("service", "events", "pause", "--minutes", "1")
    system.command("service", "events", "resume")
    for listed in ("causes", "audit"):
        system.command("service", "events", listed)
    metrics = requests.get(f"http://127.0.0.1:{system.port}/metrics", timeout=120)
    assert metrics.status_code == 200
    system.wait_until(lambda: "identity_webhooks" in metrics.text)
    with system.server.client() as client:
        assert client.acl_log() == [], "something the service does is not allowed"


@pytest.mark.walk
def test_what_redis_lost_is_brought_back_and_nothing_is_refused(system) -> None:
    session = system.verify()
    system.settle(session)
    with system.server.client() as client:
        system.wait_until(lambda: client.exists("iw:watermark"))

        client.flushdb()
        system.settle(session)  # by the periodic process
        system.wait_until(lambda: client.exists("iw:watermark"))

        with client.pipeline() as both:
            both.flushdb().set("iw:turn:reconcile", 10**15).execute()  # not by the periodic process
        found = json.loads(system.command("workers", "reconcile", "--dry-run", "--json"))
        again = json.loads(
            # Far back enough for the sessions whose events Stripe no longer lists.
            system.command("workers", "reconcile", "--since", "2020-01-01", "--json")
        )
        assert found["missed"] == again["missed"] != []
        system.settle(session)
        assert client.acl_log() == [], "something the service does is not allowed"


@pytest.mark.walk
def test_the_console_needs_nothing_else(system, free_port) -> None:
    """Every page, and every action, by the user of the web process."""
    session = system.verify()
    system.settle(session)
    (event, *_) = json.loads(system.command("service", "events", "list", "--json"))
    port = free_port()
    url = f"http://127.0.0.1:{port}/console"
    hashed = generate_password_hash("ZyxCanary7Q", "pbkdf2:sha256:1")
    system.start_web(port, CONSOLE_PASSWORD_HASH=f"ann={hashed}")
    browser = requests.Session()

    def post(path: str, **fields: str) -> requests.Response:
        page = browser.get(f"{url}/events", timeout=120).text
        fields["proof"] = page.partition('name="proof" value="')[2].partition('"')[0]
        answer = browser.post(url + path, fields, timeout=120)
        with system.server.client() as client:
            refused = [(each["object"], each["username"]) for each in client.acl_log()]
        assert (answer.status_code, refused) == (200, []), answer.text
        return answer

    post("/login", name="ann", password="ZyxCanary7Q")
    for path in (
        *("/", "/events", "/events?state=dead", "/events?state=pending", "/handlers", "/outcomes"),
        *(f"/events/{event['key']}", f"/sessions/{session}"),
    ):
        assert browser.get(url + path, timeout=120).status_code == 200
    post("/pause", do="pause")
    with system.server.client() as client:
        before = client.zcard("iw:due")
        system.verify()
        system.wait_until(lambda: client.zcard("iw:due") > before)
    for action in ("retry-now", "discard"):
        begun = post("/actions", action=action, state="pending").url.removeprefix(url)
        assert "Done." in post(begun, do="confirm").text
    post("/pause", do="resume")
    post("/logout")
    with system.server.client() as client:
        assert client.acl_log() == [], "something the console does is not allowed"


@pytest.mark.parametrize("role", ROLES)
def test_everything_else_is_refused(acl_server, role) -> None:
    password = f"ZyxCanary7Q-password-of-{role}"
    with Redis(port=acl_server.port, username=role, password=password) as client:
        assert client.ping()
        allowed = []
        for command in [*FORBIDDEN, *(["EVAL return(1) 0"] if role != "probe" else [])]:
            try:
                client.execute_command(*command.split(" "))
            except NoPermissionError:
                continue
            except RedisError as error:
                allowed.append(f"{command}: {error}")
            else:
                allowed.append(command)
        assert not allowed
    with acl_server.client() as client:
        client.acl_log_reset()


def test_the_probe_may_ask_what_keda_asks(acl_server) -> None:
    # The shape of the script in pkg/scalers/redis_scaler.go of KEDA: the type, then the length.
    script = """
        local commands = {list = 'llen', none = 'llen'}
        return redis.call(commands[redis.call('type', KEYS[1]).ok], KEYS[1])
    """
    password = "ZyxCanary7Q-password-of-probe"
    with Redis(port=acl_server.port, username="probe", password=password) as client:
        assert client.eval(script, 1, "rq:queue:identity") == 0
        with acl_server.client() as other:
            other.rpush("rq:queue:identity", "a", "b")
        assert client.eval(script, 1, "rq:queue:identity") == 2
        with pytest.raises(NoPermissionError):
            client.eval(script, 1, "iw:due")
        with pytest.raises(RedisError, match=r"permissions|can't run"):
            client.eval("return redis.call('del', KEYS[1])", 1, "rq:queue:identity")
    with acl_server.client() as client:
        client.acl_log_reset()


def test_the_example_starts_no_server_as_it_is(processes, free_port, redis_binary) -> None:
    file = Path(__file__).parents[3] / "deploy/redis-acl.conf"
    process, log = processes.start(redis_binary, "--port", str(free_port()), "--include", str(file))
    assert process.wait(120) != 0
    assert "password" in log.read_text()


def test_without_a_password_nobody_gets_in() -> None:
    text = (Path(__file__).parents[3] / "deploy/redis-acl.conf").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "user default off"
    assert all("nopass" not in line for line in lines)
