"""What handler authors once imported from `workers`."""

from __future__ import annotations

import importlib

import pytest

import identity_webhooks
import workers


@pytest.mark.parametrize("name", workers.__all__)
def test_the_old_import_works_and_says_what_to_write(name: str) -> None:
    said = f"write `from identity_webhooks import {name}`"
    with pytest.warns(DeprecationWarning, match=said) as caught:
        exec(f"from workers import {name}", found := {})  # noqa: S102
    assert found[name] is getattr(identity_webhooks, name)
    assert {warning.filename for warning in caught} == {"<string>"}, "the author's line"


def test_a_name_that_was_never_there_is_an_import_error() -> None:
    with pytest.raises(AttributeError, match="module 'workers' has no attribute 'off'"):
        _ = workers.off
    assert importlib.import_module("workers.router") is workers.router
