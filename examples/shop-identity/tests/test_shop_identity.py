"""No worker, no network: a database in a file, and what the test kit builds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from shop_identity import Shop
from sqlalchemy import text

from identity_webhooks.testing import conformance, run, verification


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(database=f"sqlite:///{tmp_path}/shop.db")
    shop.connect()
    yield shop
    shop.disconnect()


def users(shop: Shop) -> list[tuple[str, ...]]:
    with shop.engine.connect() as db:
        return [tuple(row) for row in db.execute(text("SELECT * FROM verified_users"))]


def reset(shop: Shop, name: str) -> None:
    with shop.engine.begin() as db:
        db.execute(text("DELETE FROM verified_users"))
        db.execute(text("DELETE FROM identity_webhooks_once"))
    if name == "forget":  # there has to be somebody
        run(shop.remember, verification("verified", key="before"))


def test_a_verified_user_is_remembered_once(shop: Shop) -> None:
    v = verification("verified", reference="user-7")
    assert run(shop.remember, v).status == run(shop.remember, v).status == "done"
    assert users(shop) == [("user-7", v.event.session)]


def test_a_session_of_nobody_is_dead(shop: Shop) -> None:
    result = run(shop.remember, verification("verified", reference=None))
    assert (result.status, users(shop)) == ("dead", [])


def test_a_redacted_user_is_forgotten(shop: Shop) -> None:
    run(shop.remember, verification("verified", key="one"))
    assert run(shop.forget, verification("redacted", key="two")).status == "done"
    assert users(shop) == []


@pytest.mark.parametrize("name", ["remember", "forget"])
def test_what_goes_wrong_in_production(shop: Shop, name: str) -> None:
    handler = getattr(shop, name)
    found = conformance(handler, effects=lambda: users(shop), reset=lambda: reset(shop, name))
    assert found == []
