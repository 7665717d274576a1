"""Ruby and PHP: what their SDKs send, and the lines of docs/sandbox.md.

Neither SDK is in PyPI, npm or Debian. STRIPE_RUBY and STRIPE_PHP name a checkout; for Ruby the
installed gem does, too. Without it only the language reads the line, and the test says what it left
out. What the SDK would send is written by the language's own libraries (as_ruby.rb, as_php.php).
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

pytestmark = pytest.mark.walk

DOCUMENT = Path(__file__).parents[3] / "stripe_identity_sandbox" / "openapi.yaml"
SESSIONS, REPORTS = "/v1/identity/verification_sessions", "/v1/identity/verification_reports"
HELPERS = "/v1/test_helpers/identity/verification_sessions/<session>"
ENDPOINTS, DESTINATIONS = "/v1/webhook_endpoints", "/v2/core/event_destinations"
EVENT = "identity.verification_session"
NAMES = [f"v1.{EVENT}.created", f"v1.{EVENT}.verified"]
SINCE = "2026-01-01T00:00:00.000000+00:00"
URL = "http://127.0.0.1:9/a?b=c&d=%20"
SESSION: dict[str, Any] = {
    "type": "document",
    "options": {
        "document": {
            "allowed_types": ["passport", "id_card"],
            "require_id_number": True,
            "require_matching_selfie": False,
        }
    },
    "metadata": {"plain": "1", "a b": "\u00fc & \u20ac + 100 % = ~*'()", "line": "1\n2"},
    "return_url": "https://a.example/b?c=d&e=[f]",
    "provided_details": {"email": "a+b@c.example"},
}
DESTINATION: dict[str, Any] = {
    "name": "n",
    "type": "webhook_endpoint",
    "event_payload": "thin",
    "enabled_events": NAMES,
    "webhook_endpoint": {"url": URL},
    "include": ["webhook_endpoint.signing_secret", "webhook_endpoint.url"],
}
REPORT = ["last_verification_report"]
INCLUDED = {"include": ["webhook_endpoint.url"]}
#: Every operation, and parameters for it.
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", SESSIONS, SESSION),
    ("GET", SESSIONS, {"limit": 2, "created": {"gte": 0}, "expand": ["data.verified_outputs"]}),
    ("GET", f"{SESSIONS}/<session>", {"expand": ["verified_outputs", *REPORT]}),
    ("POST", f"{SESSIONS}/<session>", {"metadata": {"plain": ""}, "provided_details": ""}),
    ("POST", f"{SESSIONS}/<session>", {"metadata": "", "type": "id_number"}),
    ("POST", f"{SESSIONS}/<session>/cancel", {}),
    ("POST", f"{SESSIONS}/<session>/redact", {"expand": REPORT}),
    ("POST", f"{HELPERS}/verify", {"expand": REPORT}),
    ("POST", f"{HELPERS}/require_input", {"error_code": "document_expired"}),
    ("GET", REPORTS, {"type": "document", "limit": 1, "created": {"lt": 1}}),
    ("GET", f"{REPORTS}/<report>", {}),
    ("GET", "/v1/events", {"types": [f"{EVENT}.created", f"{EVENT}.canceled"], "limit": 3}),
    ("GET", "/v1/events", {"delivery_success": True, "created": {"gt": 1, "lte": 4102444800}}),
    ("GET", "/v1/events/<id>", {}),
    ("POST", ENDPOINTS, {"url": URL, "enabled_events": ["*", f"{EVENT}.redacted"]}),
    ("POST", ENDPOINTS, {"url": URL, "enabled_events": ["*"], "connect": True}),
    ("GET", ENDPOINTS, {"limit": 1}),
    ("GET", f"{ENDPOINTS}/<id>", {}),
    ("POST", f"{ENDPOINTS}/<id>", {"disabled": True, "description": "", "metadata": {"a": "b"}}),
    ("DELETE", f"{ENDPOINTS}/<id>", {}),
    ("GET", "/v2/core/events", {"types": NAMES, "created": {"gt": SINCE}}),
    ("GET", "/v2/core/events/<id>", {}),
    ("POST", DESTINATIONS, DESTINATION),
    ("GET", DESTINATIONS, INCLUDED | {"limit": 2}),
    ("GET", f"{DESTINATIONS}/<id>", INCLUDED),
    ("POST", f"{DESTINATIONS}/<id>", {"enabled_events": NAMES[:1], "metadata": {"a b": "c&d"}}),
    ("POST", f"{DESTINATIONS}/<id>/disable", {}),
    ("POST", f"{DESTINATIONS}/<id>/enable", INCLUDED),
    ("DELETE", f"{DESTINATIONS}/<id>", {}),
]

#: Every way that an SDK has to Stripe: the client, what it returns, paging, the older API, uploads.
RUBY = """
Stripe.api_key = "sk_test_x"
sessions = client.v1.identity.verification_sessions
made = [sessions.create({ type: "document" }), sessions.create({ type: "document" })]
sessions.list({ limit: 1 }).auto_paging_each.first(2)
Stripe::Identity::VerificationSession.list({ limit: 1 }).auto_paging_each.first(2)
old = Stripe::Identity::VerificationSession.create({ type: "document" })
old.refresh
old.cancel
old.redact
begin
  client.v1.files.create({ purpose: "dispute_evidence", file: File.new(__FILE__) })
rescue Stripe::InvalidRequestError => error
  puts error.message
end
puts made.first.url
"""
PHP = """
\\Stripe\\Stripe::setApiKey("sk_test_x");
$sessions = $stripe->identity->verificationSessions;
$made = $sessions->create(["type" => "document"]);
$sessions->create(["type" => "document"]);
$count = 0;
foreach ($sessions->all(["limit" => 1])->autoPagingIterator() as $one) { if (++$count == 2) break; }
$made->refresh();
$made->cancel();
$made->redact();
\\Stripe\\Identity\\VerificationSession::create(["type" => "document"]);
try {
    $stripe->files->create(["purpose" => "dispute_evidence", "file" => fopen(__FILE__, "r")]);
} catch (\\Stripe\\Exception\\InvalidRequestException $error) {
    echo $error->getMessage(), "\\n";
}
echo $sessions->create(["type" => "document"])->url, "\\n";
"""


def language(name: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"CI has to have {name}")
    if found is None:
        pytest.skip(f"left out: there is no {name} on this machine")
    return found


def execute(*command: str | Path, script: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, script], capture_output=True, text=True, timeout=120, check=False
    )


def with_ids(sandbox: Any, path: str) -> str:
    """Return the path of a new object."""

    def ask(method: str, path: str, **body: Any) -> Any:
        url, auth = f"{sandbox.url}{path}", ("sk_test_x", "")
        return requests.request(method, url, auth=auth, timeout=120, **body).json()

    new = {
        ENDPOINTS: {"data": {"url": URL, "enabled_events[]": "*"}},
        DESTINATIONS: {"json": DESTINATION},
    }
    listed, arguments, _ = path.partition("/<")
    if not arguments:
        return path
    if listed in new:
        id_ = ask("POST", listed, **new[listed])["id"]
    else:
        id_ = ask("POST", SESSIONS, data={"type": "document"})["id"]
        if listed == REPORTS:
            id_ = sandbox.submit(id_)["last_verification_report"]
        elif "events" in listed:
            id_ = ask("GET", listed)["data"][0]["id"]
    return re.sub("<.*?>", id_, path)


@pytest.mark.parametrize("plain", [False, True], ids=["with positions", "without"])
@pytest.mark.parametrize(("name", "script"), [("ruby", "as_ruby.rb"), ("php", "as_php.php")])
def test_what_the_sdks_would_send(run: Any, name: str, script: str, plain: bool) -> None:
    """Every operation does it, and read its parameters as they were meant."""
    documented = {
        (method.upper(), re.sub("{.*?}", "*", path))
        for path, item in yaml.safe_load(DOCUMENT.read_text())["paths"].items()
        for method in item.keys() & {"get", "post", "delete"}
        if path.startswith(("/v1/", "/v2/"))
    }
    assert {(method, re.sub("<.*?>", "*", path)) for method, path, _ in CALLS} == documented
    sandbox, program = run(), language(name)
    if name == "php" and "curl" not in subprocess.check_output([program, "-m"], text=True).split():
        pytest.skip("left out: this PHP has no curl")
    asked = [
        {"method": method, "path": with_ids(sandbox, path), "params": params, "plain": of_old}
        for method, path, params in CALLS
        for of_old in [plain and path.startswith("/v2/")]
    ]
    sandbox.control("DELETE", "requests")
    done = subprocess.run(
        [program, Path(__file__).with_name(script), sandbox.url],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers, seen = json.loads(done.stdout), sandbox.control("GET", "requests")
    for one, (status, text), noted in zip(asked, answers, seen, strict=True):
        assert status == 200, f"{one}: {text}"
        assert (noted["method"], noted["path"]) == (one["method"], one["path"])
        # What is empty is unset.
        meant = {name: None if value == "" else value for name, value in one["params"].items()}
        assert noted["params"] == meant, one


def check(done: "subprocess.CompletedProcess[str]", sandbox: Any) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unrecognized request URL (POST: /v1/files)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(sandbox.url)


def test_the_page_s_line_for_ruby(sandbox: Any, line_of_the_page: Any, tmp_path: Path) -> None:
    ruby, script = language("ruby"), tmp_path / "line.rb"
    lines = line_of_the_page("ruby")
    script.write_text(f'require "stripe"\n{lines}\n{RUBY}')
    read = execute(ruby, "-c", script=script)
    assert read.returncode == 0, read.stderr
    checkout = os.environ.get("STRIPE_RUBY")
    path = ["-I", f"{checkout}/lib"] if checkout else []
    known = subprocess.run(
        [ruby, *path, "-e", 'require "stripe"'], capture_output=True, check=False
    )
    if known.returncode:
        pytest.skip("left out: running the line. Install the gem stripe, or set STRIPE_RUBY")
    check(execute(ruby, *path, script=script), sandbox)


def test_the_page_s_line_for_php(sandbox: Any, line_of_the_page: Any, tmp_path: Path) -> None:
    php, script = language("php"), tmp_path / "line.php"
    checkout = os.environ.get("STRIPE_PHP", "")
    lines = line_of_the_page("php")
    script.write_text(f'<?php\nrequire "{checkout}/init.php";\n{lines}\n{PHP}')
    read = execute(php, "-l", script=script)
    assert read.returncode == 0, read.stdout + read.stderr
    if not checkout:
        pytest.skip("left out: running the line. Set STRIPE_PHP to a checkout of stripe-php")
    check(execute(php, script=script), sandbox)
