"""Each cause of an error, brought about on a real server, is told by its row of the table."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as redis_py

from service import connection, findings
from service.inbox import asking
from service.inbox.scripts import Scripts, sources
from service.redis_errors import CAUSES, UnsafeRedis, explain
from service.settings import Settings
from tests.chaos.proxy import Proxy
from tests.conftest import CANARY, ROOT, Processes, Server, free_port, wait_until

NOT_HERE = {
    # These take a second node of a cluster in the middle of a change.
    *("TRYAGAIN", "MOVED", "ASK"),
    # These come of other hosts, of users who are not root, or of a process at its limit: the unit
    # test has every errno.
    *("EHOSTUNREACH", "ENETUNREACH", "EACCES", "EMFILE", "EPIPE"),
    # Redis 7 knows them: `test_an_old_redis`.
    "NO_FLAGS",
}


CA = """
[ca]
default_ca = own
[own]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
subjectAltName = {name}
basicConstraints = CA:TRUE
"""


@dataclass
class Scene:
    """What a cause is brought about with."""

    new_server: Callable[..., Server]
    processes: Processes
    folder: Path

    def tls(self, name: str, *, ends: str = "20990101000000Z") -> tuple[str, Path]:
        """Start a server behind TLS with a certificate for `name`; its URL and the certificate."""
        key, request = self.folder / "key.pem", self.folder / "request.pem"
        certificate, config = self.folder / "certificate.pem", self.folder / "ca.conf"
        config.write_text(CA.format(folder=self.folder, name=name))
        (self.folder / "index").touch()
        new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x")
        sign = ("openssl", "ca", "-batch", "-selfsign", "-config", config, "-keyfile", key)
        between = ("-startdate", "20200101000000Z", "-enddate", ends)
        for command in (
            (*new, "-keyout", key, "-out", request),
            (*sign, *between, "-in", request, "-out", certificate),
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        both = self.folder / "both.pem"
        both.write_text(key.read_text() + certificate.read_text())
        port = free_port()
        front = ROOT / "tests/e2e/deploy/tls_front.py"
        self.processes.python(front, str(port), str(self.new_server().port), str(both))

        def listens() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens)
        return f"rediss://127.0.0.1:{port}/0", certificate


def ask(url: str, *command: str | int, times: int = 1, **changes: object) -> None:
    with connection.connect(Settings(redis_url=url, **changes)) as client:
        for _ in range(times):
            client.execute_command(*(command or ("PING",)))


@contextmanager
def speaking(answer: bytes) -> Iterator[int]:
    """Listen on a port, and say this to everyone at once."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.request.sendall(answer)
            self.request.settimeout(5)
            while self.request.recv(1000):
                pass

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def configured(scene: Scene, *settings: str) -> Server:
    server = scene.new_server()
    with server.client() as admin:
        admin.execute_command("CONFIG", "SET", *settings)
    return server


def oom(scene: Scene) -> None:
    ask(configured(scene, "maxmemory", "1").url, "SET", "a", CANARY)


def misconf(scene: Scene) -> None:
    server = configured(scene, "save", "3600 1")
    shutil.rmtree(server.folder)
    with server.client() as admin:
        admin.set("a", 1)
        admin.bgsave()
        wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
        try:
            ask(server.url, "SET", "a", 1)
        finally:
            server.folder.mkdir()  # for the search of its files
            server.process.kill()


def readonly(scene: Scene) -> None:
    server = scene.new_server()
    with server.client() as admin:
        admin.replicaof("127.0.0.1", "1")
    ask(server.url, "SET", "a", 1)


def noreplicas(scene: Scene) -> None:
    ask(configured(scene, "min-replicas-to-write", "1").url, "SET", "a", 1)


def masterdown(scene: Scene) -> None:
    server = configured(scene, "replica-serve-stale-data", "no")
    with server.client() as admin:
        admin.replicaof("127.0.0.1", "1")
        ask(server.url, "GET", "a")


def loading(scene: Scene) -> None:
    # It looks up from its files for every 1,024 commands.
    server = scene.new_server("--key-load-delay", "300")
    with server.client() as admin, admin.pipeline(transaction=False) as pipe:
        for number in range(100_000):
            pipe.set(f"key:{number}", 1)
        pipe.execute()
    server.stop()
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        wait_until(lambda: answers(server))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(connection, "TIMEOUT", 60)  # on a busy machine it looks up seldom
            ask(server.url, "GET", "a")
    finally:
        with server.client() as admin:
            admin.config_set("key-load-delay", 0)
        starting.join()


def answers(server: Server) -> bool:
    with server.client() as client:
        try:
            client.ping()
        except redis_py.BusyLoadingError:
            return True
        except redis_py.RedisError:
            return False
    return True


def busy(scene: Scene) -> None:
    server = configured(scene, "busy-reply-threshold", "1")
    endless = threading.Thread(target=refused_eval, args=(server,))
    endless.start()
    try:
        wait_until(lambda: is_busy(server))
        ask(server.url, "GET", "a")
    finally:
        with server.client() as admin:
            admin.script_kill()
        endless.join()


def is_busy(server: Server) -> bool:
    with server.client() as client:
        try:
            client.ping()
        except redis_py.ResponseError as error:
            return str(error).startswith("BUSY")
    return False


def refused_eval(server: Server) -> None:
    with server.client(socket_timeout=60) as admin, pytest.raises(redis_py.ResponseError):
        admin.eval("while true do end", 0)


def noscript(scene: Scene) -> None:
    ask(scene.new_server().url, "EVALSHA", "0" * 40, 0)


def stale(scene: Scene) -> None:
    server = scene.new_server()
    scripts = Scripts({"acquire": sources()["acquire"]})
    with connection.connect(Settings(redis_url=server.url)) as client:
        send = asking(client)
        client.script_load(scripts.sources["acquire"])
        for number in (2, 1):
            (reply,) = send(scripts.command("acquire", f"slot.{number}", f"task{number}", 9), 1)
        raise reply


def crossslot(scene: Scene) -> None:
    server = scene.new_server("--cluster-enabled", "yes")
    ask(server.url, "CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
    ask(server.url, "MGET", "a", "b")


def clusterdown(scene: Scene) -> None:
    ask(scene.new_server("--cluster-enabled", "yes").url, "GET", "a")


def noauth(scene: Scene) -> None:
    ask(configured(scene, "requirepass", CANARY).url)


def wrongpass(scene: Scene) -> None:
    server = configured(scene, "requirepass", "right")
    ask(server.url.replace("//", f"//{CANARY}:{CANARY}@"))


def noperm(scene: Scene) -> None:
    server = scene.new_server()
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", CANARY, "on", "nopass", "~*", "+@all", "-get")
    ask(server.url.replace("//", f"//{CANARY}:x@"), "GET", "a")


def wrongtype(scene: Scene) -> None:
    server = scene.new_server()
    ask(server.url, "SET", "a", 1)
    ask(server.url, "LPUSH", "a", 1)


def maxclients(scene: Scene) -> None:
    server = configured(scene, "maxclients", "1")
    with server.client() as only:
        only.ping()
        ask(server.url)


def unknown_command(scene: Scene) -> None:
    ask(scene.new_server("--rename-command", "GETDEL", "").url, "GETDEL", CANARY)


def database(scene: Scene) -> None:
    ask(scene.new_server().url.replace("/0", "/99"))


def unsafe(scene: Scene) -> None:
    settings = Settings(redis_url=configured(scene, "appendonly", "no").url)
    with connection.connect(settings) as client:
        findings.require(findings.look(asking(client), settings).found)


def pool(scene: Scene) -> None:
    with connection.connect(Settings(redis_url=scene.new_server().url), 1) as client:
        taken = client.connection_pool.get_connection()
        try:
            client.ping()
        finally:
            client.connection_pool.release(taken)


def closed(scene: Scene) -> None:
    url, _ = scene.tls("IP:127.0.0.1")
    ask(url.replace("rediss://", "redis://"))


def not_redis(_: Scene) -> None:
    with speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        ask(f"redis://127.0.0.1:{port}/0")


def tls(_: Scene) -> None:
    with speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        ask(f"rediss://127.0.0.1:{port}/0")


def timeout(scene: Scene) -> None:
    server = scene.new_server()
    server.freeze()
    try:
        ask(server.url)
    finally:
        server.thaw()


def tls_timeout(scene: Scene) -> None:
    ask(scene.new_server().url.replace("redis://", "rediss://"))


def eai(_: Scene) -> None:
    ask(f"redis://:{CANARY}@no-such-host.invalid:6379/0")


def econnrefused(_: Scene) -> None:
    ask(f"redis://:{CANARY}@127.0.0.1:{free_port()}/0")


def econnreset(scene: Scene) -> None:
    with Proxy(scene.new_server().port) as proxy:
        proxy.refusing = True
        ask(f"redis://127.0.0.1:{proxy.port}/0")


def enoent(scene: Scene) -> None:
    ask(f"unix://{scene.folder}/{CANARY}.sock")


def certificate_untrusted(scene: Scene) -> None:
    ask(scene.tls("IP:127.0.0.1")[0])


def certificate_host(scene: Scene) -> None:
    url, certificate = scene.tls(f"DNS:{CANARY}.invalid")
    ask(f"{url}?ssl_ca_certs={certificate}")


def certificate_expired(scene: Scene) -> None:
    url, certificate = scene.tls("IP:127.0.0.1", ends="20200102000000Z")
    ask(f"{url}?ssl_ca_certs={certificate}")


WAYS: dict[str, Callable[[Scene], None]] = {
    each.__name__.upper(): each
    for each in (
        *(oom, misconf, readonly, noreplicas, masterdown, loading, busy, noscript, stale),
        *(crossslot, clusterdown, noauth, wrongpass, noperm, wrongtype, maxclients),
        *(unknown_command, database, unsafe, pool, closed, not_redis, tls, timeout, tls_timeout),
        *(eai, econnrefused, econnreset, enoent),
        *(certificate_untrusted, certificate_host, certificate_expired),
    )
}


def test_every_row_is_brought_about() -> None:
    assert WAYS.keys() | NOT_HERE == CAUSES.keys()


@pytest.mark.parametrize("code", WAYS)
def test_the_cause(
    code: str, new_server: Callable[..., Server], processes: Processes, tmp_path: Path
) -> None:
    with pytest.raises((redis_py.RedisError, UnsafeRedis)) as raised:
        WAYS[code](Scene(new_server, processes, tmp_path))
    cause = explain(raised.value)
    told = "EAI" if str(cause.code).startswith("EAI_") else cause.code
    assert told == code, raised.value
    assert cause.hint == CAUSES[code].hint
    assert CANARY not in f"{cause} {cause.fields()}"
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", str(cause)), "no address"


@pytest.mark.skipif("TEST_OLD_REDIS_SERVER" not in os.environ, reason="set it to a Redis 6")
def test_an_old_redis(new_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_REDIS_SERVER", os.environ["TEST_OLD_REDIS_SERVER"])
    server = new_server()
    settings = Settings(redis_url=server.url)
    with connection.connect(settings) as client:
        found = findings.look(asking(client), settings).found
    assert [each.name for each in found if each.is_fault] == ["version", "accepting"]
    assert "or newer is needed, this is Redis 6." in found[0].text
    assert "(NO_FLAGS)" in found[-1].text
