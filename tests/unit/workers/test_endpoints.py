"""`workers.endpoints`: which endpoints at Stripe are judged, and what is wrong with each."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest
from click.testing import CliRunner

from identity_webhooks.event import Form
from workers.endpoints import commands, in_words, judge
from workers.failures import StripeFailure
from workers.stripe_api import EVENT_TYPES, StripeApi, WebhookEndpoint

URL = "https://shop.example.com/webhooks/stripe"


def endpoint(form: Form, *more: str, without: str = "", **fields: object) -> WebhookEndpoint:
    """Return one that is good but for these fields, these further events and this missing one."""
    prefix = "v1." if form == "thin" else ""
    kept = (each for each in EVENT_TYPES if not (without and each.endswith(without)))
    events = frozenset((*(f"{prefix}{each}" for each in kept), *more))
    good = WebhookEndpoint("we_1", form, URL, events, livemode=False, status="enabled")
    return replace(good, **fields)


GOOD = {
    "good": endpoint("snapshot"),
    "with a version": endpoint("snapshot", api_version="2026-10-28.endive"),
    "thin": endpoint("thin"),
    "of a URL that is not shown": endpoint("thin", url=None),
}
BAD: dict[str, tuple[WebhookEndpoint, str]] = {
    "disabled": (endpoint("snapshot", status="disabled"), "is disabled: enable it"),
    **{
        f"{form} {kind.rpartition('.')[2]}": (
            endpoint(form, without=kind),
            f"lacks {'v1.' if form == 'thin' else ''}{kind}: add it",
        )
        for form in get_args(Form)
        for kind in EVENT_TYPES
    },
    "thin with events of snapshots": (
        endpoint("thin", events=frozenset(EVENT_TYPES)),
        "lacks v1.identity.verification_session.canceled, ",
    ),
    "one too many": (endpoint("snapshot", "charge.failed"), "sends charge.failed beside: take it"),
    "all there are": (
        endpoint("snapshot", events=frozenset("*")),
        "sends every event there is: choose the six of Identity",
    ),
    "live": (endpoint("snapshot", livemode=True), "is of live mode, which is not processed here"),
    "another path": (
        endpoint("snapshot", url="https://shop.example.com/hooks"),
        "sends to another path than /webhooks/stripe: correct its URL",
    ),
    "of others to our path": (
        endpoint("snapshot", events=frozenset({"charge.failed"})),
        "lacks identity.verification_session.canceled, ",
    ),
}
OTHERS = endpoint(
    "snapshot", id="we_2", url="https://x.example/", events=frozenset({"charge.failed"})
)


@pytest.mark.parametrize("livemode", [False, True])
@pytest.mark.parametrize("each", GOOD.values(), ids=GOOD)
def test_one_that_is_as_it_has_to_be_is_good(each: WebhookEndpoint, livemode: bool) -> None:
    (found,) = judge([OTHERS, replace(each, livemode=livemode)], livemode=livemode)
    assert (found.state, found.text.startswith(f"we_1 ({each.form}) sends the six")) == (
        "good",
        True,
    )


@pytest.mark.parametrize(("each", "said"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_of_that_one_alone(each: WebhookEndpoint, said: str) -> None:
    beside = replace(GOOD["good"], id="we_3")
    bad, good = judge([each, OTHERS, beside], livemode=False)
    assert bad.state == "bad"
    assert bad.text.startswith(f"we_1 ({each.form}) {said}")
    assert ";" not in bad.text, "nothing else is wrong with it"
    assert (good.state, good.text) == ("good", "we_3 (snapshot) sends the six events")
    first, second = in_words([good, bad]).splitlines()
    assert first.startswith("bad ")
    assert second.startswith("good ")


def test_all_that_is_wrong_is_said() -> None:
    each = endpoint("snapshot", without="verified", status="disabled", livemode=True)
    (found,) = judge([each], livemode=False)
    assert found.text.count(";") == 2


def test_endpoints_of_others_alone_are_none() -> None:
    (found,) = judge([OTHERS], livemode=False)
    assert (found.state, "nothing at Stripe sends events of Identity" in found.text) == (
        "bad",
        True,
    )


REFUSED = StripeFailure("forbidden", status=403)
DISABLED = replace(GOOD["good"], id="we_3", status="disabled")
# name: (what Stripe lists, the states that are found, the exit code)
CHECKS: dict[str, tuple[list[WebhookEndpoint] | StripeFailure, list[str], int]] = {
    "good": ([GOOD["good"]], ["good"], 0),
    "two that are good": ([GOOD["good"], GOOD["thin"]], ["good", "good"], 0),
    "good beside those of others": ([OTHERS, GOOD["good"]], ["good"], 0),
    "bad": ([DISABLED], ["bad"], 1),
    "good and bad": ([GOOD["good"], DISABLED], ["bad", "good"], 1),
    "bad and good": ([DISABLED, GOOD["good"]], ["bad", "good"], 1),
    "none": ([], ["bad"], 1),
    "those of others": ([OTHERS], ["bad"], 1),
    "unknown, as Stripe refuses to list them": (REFUSED, ["unknown"], 1),
    "unknown, as Stripe does not answer": (StripeFailure("unreachable"), ["unknown"], 1),
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("listed", "states", "code"), CHECKS.values(), ids=CHECKS)
def test_a_check_ends_with_0_only_when_all_is_known_to_be_good(
    listed, states, code, as_json, monkeypatch
) -> None:
    """A script looks at nothing else."""

    def endpoints(_: StripeApi) -> list[WebhookEndpoint]:
        if isinstance(listed, StripeFailure):
            raise listed
        return listed

    monkeypatch.setattr(StripeApi, "endpoints", endpoints)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_workers")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")
    done = CliRunner().invoke(commands, ["check", *(["--json"] if as_json else [])])
    said = (
        sorted(each["state"] for each in json.loads(done.stdout))
        if as_json
        else [line.split()[0] for line in done.stdout.splitlines()]
    )
    assert (done.exit_code, said) == (code, states)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("connect", [False, True])
@pytest.mark.parametrize("form", get_args(Form))
def test_one_is_made_as_it_is_asked_for_and_its_secret_is_shown(
    form, connect, as_json, monkeypatch
) -> None:
    asked: list[tuple[str, str, bool]] = []

    def create(_: StripeApi, url: str, *, form: Form, connect: bool) -> WebhookEndpoint:
        asked.append((url, form, connect))
        return endpoint(form, secret="whsec_shown_once")

    monkeypatch.setattr(StripeApi, "create_endpoint", create)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_workers")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")
    given = {"--thin": form == "thin", "--connect": connect, "--json": as_json}
    options = [option for option, is_given in given.items() if is_given]
    done = CliRunner().invoke(commands, ["create", URL, *options])
    assert (done.exit_code, done.stderr) == (0, "")
    assert asked == [(URL, form, connect)]
    if as_json:
        made = json.loads(done.stdout)
        assert (made["id"], made["form"], made["url"]) == ("we_1", form, URL)
        assert (made["secret"], len(made["events"])) == ("whsec_shown_once", 6)
    else:
        assert done.stdout.splitlines() == [
            f"we_1 sends {form} events to {URL}",
            "STRIPE_WEBHOOK_SECRET=whsec_shown_once",
        ]


def test_one_that_stripe_refuses_to_make_is_said_on_stderr(monkeypatch) -> None:
    def create(*_: object, **__: object) -> WebhookEndpoint:
        raise StripeFailure("forbidden", status=403, request_id="req_1")

    monkeypatch.setattr(StripeApi, "create_endpoint", create)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_workers")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")
    done = CliRunner().invoke(commands, ["create", URL])
    said = "STRIPE_API_KEY may not write webhook endpoints: forbidden 403 (req_1)\n"
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", said)
