"""The app, a worker with the plugin shop-identity, and the sandbox."""

from pathlib import Path

import pytest
import stripe
from app import create_app

from identity_webhooks.testing.stack import Stack


def test_a_user_is_verified_and_forgotten(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{tmp_path}/shop.db"
    monkeypatch.setenv("SHOP_DATABASE", database)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_shop")
    stack.start("shop_identity:Shop", SHOP_DATABASE=database)
    monkeypatch.setenv("STRIPE_API_BASE", stack.api)
    client = create_app().test_client()
    assert client.get("/users/user-7").json == {"verified": False}
    page = client.post("/users/user-7/verify").headers["Location"]
    api = stripe.StripeClient("sk_test_shop", base_addresses={"api": stack.api})
    (session,) = api.v1.identity.verification_sessions.list()
    assert page == session.url
    assert stack.submit(session.id)["state"] == "done"
    assert client.get("/users/user-7").json == {"verified": True}
    assert client.get("/users/user-8").json == {"verified": False}
    stack.redact(session.id)
    assert client.get("/users/user-7").json == {"verified": False}
