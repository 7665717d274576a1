"""A sandbox without a socket: its WSGI application, and a clock the test moves."""

from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.server import create_app
from stripe_identity_sandbox.settings import Settings
from stripe_identity_sandbox.state import World

SESSIONS = "/v1/identity/verification_sessions"
REPORTS = "/v1/identity/verification_reports"
DESTINATIONS = "/v2/core/event_destinations"


@dataclass
class Api:
    """Calls with a key; ``client`` is there for everything unusual."""

    world: World
    client: FlaskClient

    def get(self, path: str, *, key: str = "sk_test_unit", **headers: str) -> TestResponse:
        return self.client.get(path, headers={"Authorization": f"Bearer {key}", **headers})

    def post(
        self, path: str, body: str = "", *, key: str = "sk_test_unit", **headers: str
    ) -> TestResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(
            path,
            data=body,
            headers={
                "Authorization": f"Bearer {key}",
                "Content-Type": "application/x-www-form-urlencoded",
                **named,
            },
        )

    def post_json(self, path: str, *, key: str = "sk_test_unit", **body: Any) -> TestResponse:
        return self.client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})

    def create(self, body: str = "type=document", **headers: str) -> Any:
        answer = self.post(SESSIONS, body, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json

    def control(self, path: str, **body: Any) -> Any:
        return self.client.post(f"/_sandbox/{path}", json=body)

    def error(self, answer: TestResponse) -> Any:
        assert answer.json is not None
        return answer.json["error"]


@pytest.fixture
def world() -> World:
    return World(Settings(marker="CANARY"), clock=lambda: 1_795_000_000.0)


@pytest.fixture
def api(world: World) -> Api:
    return Api(world, create_app(world, Faults()).test_client())
