"""A shop in Flask whose users are verified: its database is the one the plugin writes to.

The variable SHOP_DATABASE is the database's URL, STRIPE_API_KEY a key that may create sessions.
"""

from __future__ import annotations

import os

import stripe
from flask import Flask, redirect
from sqlalchemy import create_engine, text
from werkzeug.wrappers import Response


def create_app() -> Flask:
    app = Flask(__name__)
    engine = create_engine(os.environ["SHOP_DATABASE"])
    base = os.environ.get("STRIPE_API_BASE", "https://api.stripe.com")
    api = stripe.StripeClient(os.environ["STRIPE_API_KEY"], base_addresses={"api": base})

    # In your app the user is who has logged in.
    @app.post("/users/<user>/verify")
    def verify(user: str) -> Response:
        session = api.v1.identity.verification_sessions.create(
            {"type": "document", "client_reference_id": user}
        )
        return redirect(str(session.url), 303)

    @app.get("/users/<user>")
    def show(user: str) -> dict[str, bool]:
        query = text("SELECT 1 FROM verified_users WHERE user_id = :user")
        with engine.connect() as db:
            return {"verified": db.scalar(query, {"user": user}) is not None}

    return app
