"""The fixture `stack`, as the author of a plugin uses it in a project of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from identity_webhooks.testing.stack import Stack
from tests.conftest import ROOT

TEST = """
from pathlib import Path
from sqlalchemy import create_engine, text

def test_it(stack, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    stack.start("shop_identity:Shop", SHOP_DATABASE=url)
    engine = create_engine(url)

    def users() -> list[tuple[str, ...]]:
        with engine.connect() as db:
            return [tuple(row) for row in db.execute(text("SELECT * FROM verified_users"))]

    assert users() == [], "the table is there, however long @on_start takes"
    event = stack.verify("verified", reference="user-7")
    statuses = {handler["name"]: handler["status"] for handler in event["handlers"]}
    assert event["state"] == "done", stack.log()
    assert statuses["Shop.remember"] == "done"
    assert users() == [("user-7", event["session"])]
    assert stack.verify("document_expired")["reason"] == "document_expired"
    assert stack.redact(event["session"])["state"] == "done"
    assert users() == []
    engine.dispose()
"""


@pytest.mark.walk
def test_in_a_project_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples/shop-identity/shop_identity", tmp_path / "shop_identity")
    plugin = tmp_path / "shop_identity/__init__.py"
    connect, slowly = "with self.engine.begin()", "__import__('time').sleep(2)\n        "
    plugin.write_text(plugin.read_text().replace(connect, slowly + connect, 1))
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["identity_webhooks.testing.stack"]\n')
    (tmp_path / "test_it.py").write_text(TEST)
    env = {"PATH": os.environ["PATH"], "IDENTITY_WEBHOOKS": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=env | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    without = subprocess.run(
        command,
        cwd=tmp_path,
        env=env | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "IDENTITY_WEBHOOKS": "/"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "set IDENTITY_WEBHOOKS to a checkout of it" in without.stdout


def test_each_call_returns_the_event_that_it_made_itself(stack: Stack) -> None:
    """Whatever this session, or another one, has been through before; also without the stack."""

    def newest(session: str) -> str:
        url = f"{stack.api}/v1/events?type=identity.verification_session.requires_input"
        listed = requests.get(url, auth=("sk_test_app", ""), timeout=120).json()["data"]
        return next(each["id"] for each in listed if each["data"]["object"]["id"] == session)

    stack.start()
    first = stack.verify("document_expired", reference="user-7", metadata={"plan": "pro"})
    beside = stack.verify("document_expired", metadata={"plan": "free"})
    one, two = first["session"], beside["session"]
    for session, given in ((one, ("user-7", "pro")), (two, (None, "free"))):
        url = f"{stack.api}/v1/identity/verification_sessions/{session}"
        shown = requests.get(url, auth=("sk_test_app", ""), timeout=120).json()
        assert (shown["client_reference_id"], shown["metadata"]["plan"]) == given
    assert [first["id"], beside["id"]] == [newest(one), newest(two)]
    again = stack.submit(one, "document_expired")
    assert again["id"] == newest(one) != first["id"]
    app = f"{stack.api}/_sandbox/sessions/{two}/submit"
    requests.post(app, json={"outcome": "abandoned"}, timeout=120).raise_for_status()
    last = stack.submit(two, "document_expired")
    assert last["id"] == newest(two)
    assert stack.settled(one, "requires_input") == again
    for _ in range(2):  # both are taken in together
        requests.post(app, json={"outcome": "abandoned"}, timeout=120).raise_for_status()
    assert stack.settled(two, "requires_input")["id"] == newest(two)
