"""A handler with one effect of each kind: a row for each run, and a row by `v.once`.

Neither table would refuse a second row. The variable PAID_DATABASE is the database's URL.
"""

from __future__ import annotations

import os
import time

from sqlalchemy import Connection, create_engine, text

from identity_webhooks import Verification, on, on_stop

engine = create_engine(os.environ["PAID_DATABASE"], pool_pre_ping=True)
PAUSE = 0.01
"""Seconds before, between and after the effects: moments to be killed in."""


@on("*", superseded=True)
def pay(v: Verification) -> None:
    values = {"session": v.event.session, "kind": v.event.kind}
    with engine.begin() as db:
        db.execute(text("INSERT INTO without_key VALUES (:session, :kind)"), values)
    time.sleep(PAUSE)

    @v.once(engine)
    def insert(db: Connection) -> None:
        db.execute(text("INSERT INTO with_once VALUES (:session, :kind)"), values)
        time.sleep(PAUSE)

    time.sleep(PAUSE)


@on_stop
def disconnect() -> None:
    engine.dispose()
