"""What `identity_webhooks.testing` builds has the shape of what the API answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from identity_webhooks.reasons import REASONS
from identity_webhooks.testing import verification
from tests.conftest import wait_until

OUTCOMES = ("created", "verified", "canceled", "redacted", *REASONS)
# Of a kind of attempt that the sandbox makes only with other options.
OTHER_OPTIONS = {"email", "phone"}


@pytest.fixture(scope="module")
def sandbox(session_processes) -> str:
    _, log = session_processes.python(
        "-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json"
    )
    wait_until(lambda: "\n" in log.read_text())
    return json.loads(log.read_text().split("\n")[0])["url"]


def answer(sandbox: str, outcome: str) -> dict[str, Any]:
    """Return the session of this outcome as a worker fetches it."""

    def call(method: str, path: str, **given: Any) -> dict[str, Any]:
        url = f"{sandbox}{path}"
        got = requests.request(method, url, auth=("sk_test_1", ""), timeout=120, **given)
        got.raise_for_status()
        return got.json()

    kind = "id_number" if outcome.startswith("id_number") else "document"
    form = {"type": kind, "client_reference_id": "user-1"}
    sessions = "/v1/identity/verification_sessions"
    session = call("POST", sessions, data=form)["id"]
    if outcome == "canceled":
        call("POST", f"{sessions}/{session}/cancel")
    elif outcome != "created":
        submitted = "verified" if outcome == "redacted" else outcome
        call("POST", f"/_sandbox/sessions/{session}/submit", json={"outcome": submitted})
    if outcome == "redacted":
        call("POST", f"{sessions}/{session}/redact")
        call("POST", f"/_sandbox/sessions/{session}/complete", json={})
    expand = [("expand[]", name) for name in ("verified_outputs", "last_verification_report")]
    return call("GET", f"{sessions}/{session}", params=expand)


def shape(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every path and the type of what stands there; null fits any."""
    yield where, type(value).__name__
    if isinstance(value, dict):
        for name, item in value.items():
            yield from shape(item, f"{where}.{name}")


WORDS = ("object", "status", "type", "code", "id_number_type")


def words(value: dict[str, Any], where: str = "") -> dict[str, object]:
    """Return by its path every word of Stripe's."""
    found: dict[str, object] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= words(item, f"{where}.{name}")
        elif name in WORDS:
            found[f"{where}.{name}"] = item
    return found


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_same_fields_of_the_same_types(outcome: str, sandbox: str) -> None:
    ours = dict(shape(verification(outcome).session.to_dict()))
    answer_of = answer(sandbox, outcome)
    theirs = dict(shape(answer_of))
    if outcome.partition("_")[0] in OTHER_OPTIONS:
        drop = (".options.", ".last_verification_report.options.")
        ours, theirs = (
            {k: v for k, v in each.items() if not k.startswith(drop)} for each in (ours, theirs)
        )
    if outcome == "redacted":  # the worker puts None in place of what Stripe shows then
        drop = ".last_verification_report.document.issued_date."
        theirs = {k: v for k, v in theirs.items() if not k.startswith(drop)}
        theirs[drop[:-1]] = "NoneType"
    assert ours.keys() == theirs.keys()
    different = {k for k in ours if ours[k] != theirs[k] and "NoneType" not in {ours[k], theirs[k]}}
    assert not different
    assert words(verification(outcome).session.to_dict()) == words(answer_of)
