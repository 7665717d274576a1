"""Two web hosts behind a real proxy that keeps connections, restarted one after another."""

from __future__ import annotations

import csv
import shutil
import socket
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import requests

RATE = 50
"""Deliveries a second."""

HAPROXY = """
global
  maxconn 200
  stats socket ipv4@127.0.0.1:{stats}
defaults
  mode http
  timeout connect 2s
  timeout client 10s
  timeout server 10s
  timeout check 10s
  timeout http-keep-alive 60s
  option redispatch
  retries 3
  http-reuse always
frontend web
  bind 127.0.0.1:{proxy}
  default_backend hosts
backend hosts
  option httpchk GET /readyz
  http-check send hdr Host receiver
  default-server check inter 500ms fall 1 rise 1
  server a 127.0.0.1:{a}
  server b 127.0.0.1:{b}
"""

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 200; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream hosts {{
    # Without this a host that was refused once is left out for 10 s, while the other restarts.
    server 127.0.0.1:{a} max_fails=0;
    server 127.0.0.1:{b} max_fails=0;
    keepalive 16;
  }}
  server {{
    listen 127.0.0.1:{proxy};
    location / {{
      proxy_pass http://hosts;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


class Sender:
    """Sends deliveries at a steady rate, and counts what comes back."""

    def __init__(self, receiver, port: int) -> None:
        self._receiver, self._url = receiver, f"http://127.0.0.1:{port}/webhooks/stripe"
        self.answers: Counter[object] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, name: int) -> None:
        number = 0
        with requests.Session() as session:
            while not self._over.wait(len(self._threads) / RATE):
                number += 1
                body = self._receiver.event(f"evt_{name}_{number}")
                headers = {"Stripe-Signature": self._receiver.sign(body)}
                try:
                    answer = session.post(self._url, data=body, headers=headers, timeout=120)
                    self.answers[answer.status_code] += 1
                except requests.RequestException as error:
                    self.answers[type(error).__name__] += 1


@pytest.mark.walk
@pytest.mark.parametrize("proxy", ["haproxy", pytest.param("nginx", marks=pytest.mark.walk)])
def test_a_rolling_restart_is_not_seen_by_the_sender(  # noqa: PLR0917
    proxy,
    processes,
    gunicorn,
    new_receiver,
    environment,
    free_port,
    wait_until,
    tmp_path: Path,
    server,
    redis,
) -> None:
    if not shutil.which(proxy):
        pytest.skip(f"needs {proxy}")
    env = {"REDIS_URL": server.url, "DRAIN_SECONDS": "3", "WEB_CONCURRENCY": "1"}
    hosts = [new_receiver(**env) for _ in range(2)]
    ports = {"proxy": free_port(), "stats": free_port(), "a": hosts[0].port, "b": hosts[1].port}
    config = tmp_path / "proxy.conf"
    template = HAPROXY if proxy == "haproxy" else NGINX
    config.write_text(template.format(folder=tmp_path, **ports))
    command = ("haproxy", "-f", config) if proxy == "haproxy" else ("nginx", "-c", config)
    processes.start(*command)
    wait_for(ports["proxy"])
    if proxy == "haproxy":
        wait_until(lambda: up(ports["stats"]) == 2)
    with closing(Sender(hosts[0], ports["proxy"])) as sender:
        time.sleep(2)
        for host in hosts:
            host.process.terminate()
            assert host.process.wait(120) == 0
            bind = ("--bind", f"127.0.0.1:{host.port}")
            processes.python(*gunicorn, *bind, env=environment | env)
            wait_for(host.port)
            if proxy == "haproxy":
                wait_until(lambda: up(ports["stats"]) == 2)
            time.sleep(1)
    assert set(sender.answers) == {200}
    assert sender.answers[200] > RATE * 6
    assert redis.zcard("iw:due") == sender.answers[200]


def up(port: int) -> int:
    """How many hosts HAProxy takes for ready, asked at its stats socket."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as stats:
        stats.sendall(b"show stat\n")
        lines = stats.makefile().read().splitlines()
    rows = csv.DictReader(lines)
    return sum(
        row["# pxname"] == "hosts" and row["svname"] in "ab" and row["status"] == "UP"
        for row in rows
    )


def wait_for(port: int) -> None:
    ends = time.monotonic() + 120
    while True:
        try:
            if requests.get(f"http://127.0.0.1:{port}/readyz", timeout=120).status_code == 200:
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < ends
        time.sleep(0.05)
