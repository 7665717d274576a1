"""A handler that fails until the file MENDED is there."""

from __future__ import annotations

import os
from pathlib import Path

from identity_webhooks import Verification, on


@on("verified", retries=0)
def save(v: Verification) -> None:
    if not Path(os.environ["MENDED"]).exists():
        raise KeyError(v.session.id)
