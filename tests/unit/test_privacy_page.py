"""docs/privacy.md: it is what the code says."""

from __future__ import annotations

from dev.privacy_page import PAGE, page, redis_keys
from service.inbox import keys


def test_it_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run make privacy-page"


def test_every_key_that_the_code_spells_is_on_it() -> None:
    described = [key for key, _, _ in redis_keys()]
    spelled = [
        value
        for name, value in vars(keys).items()
        if name.isupper() and isinstance(value, str) and ":" in value
    ]
    assert len(spelled) > 10
    for start in spelled:
        assert any(key.startswith(start) for key in described), start
