"""The lines of docs/sandbox.md for Ruby and PHP, run with the SDK where it is at hand.

STRIPE_RUBY and STRIPE_PHP name a checkout of it; for Ruby the installed gem does, too. Without it
only the language reads the line, and the test says what it left out.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

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
    if found is None:
        pytest.skip(f"left out: there is no {name} on this machine")
    return found


def run(*command: str | Path, script: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, script], capture_output=True, text=True, timeout=60, check=False
    )


def check(done: "subprocess.CompletedProcess[str]", sandbox: Any) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unrecognized request URL (POST: /v1/files)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(sandbox.url)


def test_the_page_s_line_for_ruby(sandbox: Any, line_of_the_page: Any, tmp_path: Path) -> None:
    ruby, script = language("ruby"), tmp_path / "line.rb"
    lines = line_of_the_page("ruby")
    script.write_text(f'require "stripe"\n{lines}\n{RUBY}')
    read = run(ruby, "-c", script=script)
    assert read.returncode == 0, read.stderr
    checkout = os.environ.get("STRIPE_RUBY")
    path = ["-I", f"{checkout}/lib"] if checkout else []
    known = subprocess.run(
        [ruby, *path, "-e", 'require "stripe"'], capture_output=True, check=False
    )
    if known.returncode:
        pytest.skip("left out: running the line. Install the gem stripe, or set STRIPE_RUBY")
    check(run(ruby, *path, script=script), sandbox)


def test_the_page_s_line_for_php(sandbox: Any, line_of_the_page: Any, tmp_path: Path) -> None:
    php, script = language("php"), tmp_path / "line.php"
    checkout = os.environ.get("STRIPE_PHP", "")
    lines = line_of_the_page("php")
    script.write_text(f'<?php\nrequire "{checkout}/init.php";\n{lines}\n{PHP}')
    read = run(php, "-l", script=script)
    assert read.returncode == 0, read.stdout + read.stderr
    if not checkout:
        pytest.skip("left out: running the line. Set STRIPE_PHP to a checkout of stripe-php")
    check(run(php, script=script), sandbox)
