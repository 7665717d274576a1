"""The alert rules as they are shipped, in promtool: from a cold start, only when they should."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
OPERATIONS = ROOT / "docs" / "operations.md"

WEB = 'instance="a"'
NEVER = " ".join(["Inf"] * 61)
WELL = {
    f"identity_webhooks_redis_up{{{WEB}}}": "1x60",
    f"identity_webhooks_accepting{{{WEB}}}": "1x60",
    f"identity_webhooks_redis_memory_bytes{{{WEB}}}": "10x60",
    f"identity_webhooks_redis_memory_limit_bytes{{{WEB}}}": "100x60",
    f"identity_webhooks_pending_events{{{WEB}}}": "3x60",
    f"identity_webhooks_inbox_limit{{{WEB}}}": "100x60",
    f'identity_webhooks_processes{{role="worker",{WEB}}}': "1x60",
    f'identity_webhooks_processes{{role="periodic",{WEB}}}': "1x60",
    f"identity_webhooks_workers_lacking_handlers{{{WEB}}}": "0x60",
    f'identity_webhooks_paused{{reason="",{WEB}}}': "0x60",
    f"identity_webhooks_overdue_seconds{{{WEB}}}": "0x60",
    f"identity_webhooks_oldest_event_seconds{{{WEB}}}": "1x60",
    f'identity_webhooks_dead_events{{reason="failed",{WEB}}}': "0x60",
    f'identity_webhooks_reconcile_failed{{account="own",{WEB}}}': "0x60",
    f'identity_webhooks_reconciled_seconds{{account="own",{WEB}}}': "100x60",
    f"identity_webhooks_clock_ahead_seconds{{{WEB}}}": "0x60",
    f'identity_webhooks_secret_unused_seconds{{secret="old",{WEB}}}': NEVER,
    f'identity_webhooks_secret_unused_seconds{{secret="new",{WEB}}}': NEVER,
    f'identity_webhooks_web_deliveries_total{{answer="new",{WEB}}}': "0+10x60",
    f'identity_webhooks_fetches_total{{result="ok",{WEB}}}': "0+10x60",
    f'identity_webhooks_handler_runs_total{{handler="a.b",status="done",{WEB}}}': "0+10x60",
}
"""A sample every 15 s for a quarter of an hour, of a service that is well."""

ONE = ["0x8 1x52", "1x60"]
"""The first one comes after two minutes, or before the first scrape ever."""


def gauge(name: str, value: str, labels: str = "") -> tuple[str, list[str]]:
    return f"identity_webhooks_{name}{{{labels}{',' if labels else ''}{WEB}}}", [value]


def counter(name: str, labels: str) -> tuple[str, list[str]]:
    return f"identity_webhooks_{name}_total{{{labels},{WEB}}}", ONE


DRILLS: dict[str, list[tuple[str, list[str]]]] = {
    "RedisRefuses": [
        gauge("redis_up", "1x8 0x52"),
        gauge("accepting", "1x8 0x52"),
        gauge("web_deliveries_total", "0x8 0+1x52", 'answer="redis_failed"'),
    ],
    "RedisMemoryShort": [
        gauge("redis_memory_bytes", "10x8 80x52"),
        counter("web_deliveries", 'answer="memory_short"'),
    ],
    "InboxFull": [
        gauge("pending_events", "3x8 90x52"),
        counter("web_deliveries", 'answer="full"'),
    ],
    "SignatureRefused": [
        counter("web_refusals", 'reason="signature_mismatch"'),
        counter("web_refusals", 'reason="signature_expired"'),
        gauge("web_refusals_total", "0+1x60", 'reason="malformed_header"'),
    ],
    "WrongMode": [counter("web_deliveries", 'answer="other_mode"')],
    "WrongEvents": [counter("web_deliveries", 'answer="ignored"')],
    "WrongPath": [counter("web_unknown_paths", 'method="POST"')],
    "NoWorker": [gauge("processes", "1x8 0x52", 'role="worker"')],
    "NoPeriodic": [gauge("processes", "1x8 0x52", 'role="periodic"')],
    "HandlersDiffer": [gauge("workers_lacking_handlers", "0x8 1x52")],
    "Paused": [gauge("paused", "_x8 1x52", 'reason="stripe: key 401"')],
    "Behind": [gauge("overdue_seconds", "0x8 0+15x52")],
    "StripeRefusesKey": [
        counter("fetches", 'result="key"'),
        counter("fetches", 'result="forbidden"'),
    ],
    "StripeFails": [gauge("fetches_total", "0+10x60", 'result="unreachable"')],
    "HandlerFails": [
        gauge("handler_runs_total", "0+10x60", 'handler="a.b",status="retry"'),
        gauge("handler_runs_total", "0x8 1x52", 'handler="a.new",status="dead"'),
    ],
    "EventsWait": [gauge("oldest_event_seconds", "4000x60")],
    "DeadEvents": [gauge("dead_events", "0x8 1x52", 'reason="failed"')],
    "NotReconciled": [
        gauge("reconcile_failed", "0x8 1x52", 'account="own"'),
        gauge("reconciled_seconds", "1000x60", 'account="own"'),
    ],
    "DeliveriesMissed": [counter("reconcile_missed", 'of="x"')],
    "ClockSetBack": [gauge("clock_ahead_seconds", "0x8 60x52")],
}
"""Each alert with the series that alone have to bring it."""

A_DAY = {"SecretUnused": [gauge("secret_unused_seconds", "5x6000", 'secret="new"')]}
"""The same for one that has to last for a day."""


def lasting(values: str) -> str:
    """Return the same samples for 25 hours."""
    return " ".join(["Inf"] * 6001) if values == NEVER else re.sub(r"x60$", "x6000", values)


def names() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def case(series: dict[str, str], firing: list[str], at: str) -> dict[str, object]:
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": at,
                "exp_samples": [
                    {"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing
                ],
            }
        ],
    }


def test_each_alert_fires_when_it_should_and_alone(promtool, tmp_path) -> None:
    # Twice the same from two instances: nothing doubles.
    second = {name.replace(WEB, 'instance="b"'): values for name, values in WELL.items()}
    cases = [case(WELL, [], "10m"), case(WELL | second, [], "10m")]
    cases.append(case({"unrelated": "1x60"}, ["NotScraped"], "10m"))
    cases += [
        case(WELL | {name: each}, [alert], "10m")
        for alert, ways in DRILLS.items()
        for name, values in ways
        for each in values
    ]
    day = {name: lasting(values) for name, values in WELL.items()}
    cases += [
        case(day | {name: each}, firing, at)
        for alert, ways in A_DAY.items()
        for name, values in ways
        for each in values
        for firing, at in (([], "23h"), ([alert], "25h"))
    ]
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": cases}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_its_drill_and_its_section() -> None:
    assert {*names()} == {*DRILLS, *A_DAY, "NotScraped"}
    sections = re.findall(r"^### (\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sections) == sorted(names())
    for rule in names():
        assert f"docs/operations.md#{rule.lower()}\n" in RULES.read_text()


def test_status_names_things_as_the_alerts_do() -> None:
    text = (ROOT / "service/status.py").read_text()
    said = re.findall(r'(?:Problem\(|return|alert =|else)\s*"([A-Z]\w+)"', text)
    # While nothing is scraped, Prometheus alone knows.
    assert {*said, "NotScraped"} == set(names())


def test_the_configuration_is_one(promtool) -> None:
    done = promtool("check", "config", ROOT / "deploy/prometheus/prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
