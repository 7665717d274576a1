"""The examples do what their pages say, followed to the letter."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
#: With the plugin, as its entry point would load it.
PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
    *("-p", "stripe_identity_sandbox.pytest_plugin"),
)


@pytest.fixture
def with_the_command(tmp_path: Path) -> dict[str, str]:
    """An environment that has `stripe-identity-sandbox`, from this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "stripe-identity-sandbox"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m stripe_identity_sandbox "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def node_example(tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the example, and the blocks of shell on its page."""
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI"):
            pytest.fail("CI has to have node and npm")
        pytest.skip("no node and npm on this machine")
    folder = shutil.copytree(EXAMPLES / "node", tmp_path / "node")
    return folder, re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_node(
    node_example: tuple[Path, list[str]],
    with_the_command: dict[str, str],
    free_port: Callable[[], int],
) -> None:
    folder, (install_and_test, play) = node_example
    done = run_in(folder, with_the_command, "sh", "-ec", install_and_test, seconds=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 1" in done.stdout
    play_with_it(play, folder, with_the_command, free_port)


def play_with_it(
    block: str, folder: Path, environment: dict[str, str], free_port: Callable[[], int]
) -> None:
    """Do what the page says, on free ports, and be the user in the browser."""
    app, sandbox = str(free_port()), str(free_port())
    block = block.replace("3000", app).replace("12111", sandbox)
    block = block.replace("identity-sandbox serve", f"identity-sandbox serve --port {sandbox}")
    process = subprocess.Popen(
        ["sh", "-ec", block],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    try:
        for _ in range(600):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{sandbox}/_sandbox/clock", timeout=120)
                page = requests.get(f"http://127.0.0.1:{app}/verify", timeout=120)
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the example did not start")
        assert "Verify your identity" in page.text
        requests.post(page.url, data={"outcome": "verified"}, timeout=120).raise_for_status()
        heard = (line for line in process.stdout if line.startswith("identity."))
        for change in ("created", "processing", "verified"):
            assert next(heard).startswith(f"identity.verification_session.{change} vs_")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(120)
        process.stdout.close()


def run_in(
    folder: Path, environment: dict[str, str], *command: str | Path, seconds: float = 120
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_pytest(tmp_path: Path, with_the_command: dict[str, str]) -> None:
    shutil.copy(EXAMPLES / "pytest" / "test_verification.py", tmp_path)
    done = run_in(tmp_path, with_the_command, *PYTEST, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_pytest_says_when_a_sandbox_does_not_start(
    tmp_path: Path, with_the_command: dict[str, str]
) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(start_stripe_sandbox): start_stripe_sandbox('--port', 'x')\n"
    )
    done = run_in(tmp_path, with_the_command, *PYTEST, tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: The sandbox did not start with ('--port', 'x')" in done.stdout
    assert "Invalid value for '--port'" in done.stdout


@pytest.mark.sample(1)
@pytest.mark.parametrize("command", ["installed", "missing"])
def test_node_says_when_a_sandbox_does_not_start(
    node_example: tuple[Path, list[str]], with_the_command: dict[str, str], command: str
) -> None:
    folder, _ = node_example
    (folder / "it.test.mjs").write_text(
        'import test from "node:test";\nimport { startSandbox } from "./sandbox.mjs";\n'
        'test("it", (context) => startSandbox(context, "--port", "x"));\n'
    )
    node = shutil.which("node")
    assert node
    path = with_the_command["PATH"] if command == "installed" else str(folder)
    done = run_in(folder, with_the_command | {"PATH": path}, node, "--test", "it.test.mjs")
    assert done.returncode == 1
    wanted = "did not start with --port,x" if command == "installed" else "ENOENT"
    assert wanted in done.stdout


def test_the_page_s_line_for_python(sandbox: Any, line_of_the_page: Any) -> None:
    names: dict[str, Any] = {"stripe": stripe}
    exec(line_of_the_page("python"), names)  # noqa: S102 -- our own page
    made = names["client"].v1.identity.verification_sessions.create({"type": "document"})
    assert made.url.startswith(sandbox.url)
    client = names["client"]
    for send in (
        lambda: client.v1.files.create({"purpose": "dispute_evidence", "file": BytesIO(b"x")}),
        lambda: client.oauth.token({"grant_type": "authorization_code", "code": "x"}),
        lambda: client.v2.billing.meter_event_stream.create({"events": []}),
    ):
        with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
            send()


def test_the_page_s_line_for_node(sandbox: Any, line_of_the_page: Any, node_sdk: Path) -> None:
    script = f"""
        const Stripe = require({str(node_sdk / "node_modules" / "stripe")!r});
        {line_of_the_page("js")}
        const file = {{ purpose: "dispute_evidence", file: {{ data: "x", name: "x.txt" }} }};
        const token = {{ grant_type: "authorization_code", code: "x" }};
        (async () => {{
          const made = await stripe.identity.verificationSessions.create({{ type: "document" }});
          console.log(made.url);
          for (const send of [
            () => stripe.files.create(file),
            () => stripe.oauth.token(token),
            () => stripe.v2.billing.meterEventStream.create({{ events: [] }}),
          ]) await send().catch((error) => console.log(error.message));
        }})();
    """
    done = subprocess.run(
        ["node", "-e", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith(sandbox.url), done.stderr
    for path in ("/v1/files", "/oauth/token", "/v2/billing/meter_event_stream"):
        assert f"Unrecognized request URL (POST: {path})" in done.stdout, "nothing leaves"


def test_the_page_s_line_for_curl(sandbox: Any, line_of_the_page: Any) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    line = line_of_the_page("sh")
    done = subprocess.run(
        ["sh", "-c", f"{line} -sS"], capture_output=True, text=True, timeout=120, check=False
    )
    assert sandbox.url in done.stdout, done.stderr
