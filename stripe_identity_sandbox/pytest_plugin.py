"""A fixture for pytest: a sandbox as a process of its own, which ends with the test.

Installed with the distribution; loaded by pytest itself.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3


class Sandbox:
    """A running sandbox: point a Stripe client at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def control(self, path: str, *, method: str = "POST", **body: Any) -> Any:
        """Call a control route: ``control("sessions/vs_1/submit", outcome="document_expired")``.

        Raises:
            ValueError: the sandbox refused, with its reason.
        """
        sent = body if method == "POST" else None
        answer = urllib3.request(method, f"{self.url}/_sandbox/{path}", json=sent)
        if answer.status >= 400:
            raise ValueError(answer.json()["error"]["message"])
        return answer.json()

    def requests(self) -> list[dict[str, Any]]:
        """Return what the app asked and what was answered, oldest first."""
        return list(self.control("requests", method="GET"))


@pytest.fixture
def start_stripe_sandbox() -> Iterator[Callable[..., Sandbox]]:
    """Start sandboxes with options of ``serve``, all of which end with the test.

    The fixture's value raises RuntimeError when one does not start.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> Sandbox:
        command = [
            sys.executable,
            "-m",
            "stripe_identity_sandbox",
            "serve",
            "--port",
            "0",
            "--json",
        ]
        process = subprocess.Popen(  # noqa: S603 -- our own command
            [*command, *options], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout  # noqa: S101 -- it was asked for
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"The sandbox did not start with {options}: see its stderr.")
        return Sandbox(json.loads(line)["url"])

    yield start
    for process in started:
        process.terminate()
        with process:
            process.wait(timeout=10)


@pytest.fixture
def stripe_sandbox(start_stripe_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A sandbox without options."""
    return start_stripe_sandbox()
