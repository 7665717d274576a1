"""Marks users as verified in the shop's database, and forgets them when Stripe does.

The variable SHOP_DATABASE is the database's URL, as SQLAlchemy takes it.
"""

from functools import cached_property

from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Connection, Engine, create_engine, text

from identity_webhooks import Discard, Verification, on, on_start, on_stop
from identity_webhooks.once import create_table


class Shop(BaseSettings):
    """The settings, and the handlers that use them."""

    model_config = SettingsConfigDict(env_prefix="shop_")

    database: str

    @on_start
    def connect(self) -> None:
        """Make the tables; in production this is a migration's."""
        with self.engine.begin() as db:
            db.execute(
                text(
                    "CREATE TABLE IF NOT EXISTS verified_users"
                    " (user_id VARCHAR(100) PRIMARY KEY, session VARCHAR(100) NOT NULL)"
                )
            )
        create_table(self.engine)

    @on_stop
    def disconnect(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    @on("verified")
    def remember(self, v: Verification) -> None:
        """Keep who was verified by which session: nothing else of the person."""
        user = v.subject
        if user is None:
            raise Discard("the session has no client_reference_id")

        @v.once(self.engine)
        def insert(db: Connection) -> None:
            values = {"user": user, "session": v.event.session}
            db.execute(text("DELETE FROM verified_users WHERE user_id = :user"), values)
            db.execute(text("INSERT INTO verified_users VALUES (:user, :session)"), values)

        v.log.info("user_verified", subject=user)

    @on("redacted")
    def forget(self, v: Verification) -> None:
        """Erase by the session: its metadata are empty by now."""

        @v.once(self.engine)
        def delete(db: Connection) -> None:
            statement = text("DELETE FROM verified_users WHERE session = :session")
            db.execute(statement, {"session": v.event.session})

        v.log.info("user_forgotten")

    @cached_property
    def engine(self) -> Engine:
        """The one engine of this process. It connects when it is first used."""
        return create_engine(self.database)
