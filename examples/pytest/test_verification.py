"""A test of an app with Stripe's SDK; `stripe_sandbox` is a fixture of stripe-identity-sandbox."""

import stripe


def start_verification(client: stripe.StripeClient, user: str) -> str:
    """Stands for your app: returns where to send the user."""
    session = client.v1.identity.verification_sessions.create(
        {"type": "document", "metadata": {"user": user}}
    )
    return str(session.url)


def test_a_user_is_verified(stripe_sandbox) -> None:
    client = stripe.StripeClient("sk_test_x", base_addresses={"api": stripe_sandbox.url})
    assert start_verification(client, "u1").startswith(stripe_sandbox.url)

    (asked,) = stripe_sandbox.requests()
    assert asked["params"] == {"type": "document", "metadata": {"user": "u1"}}
    session = asked["answer"]["id"]
    stripe_sandbox.control(f"sessions/{session}/submit", outcome="document_expired")
    stripe_sandbox.control(f"sessions/{session}/submit")
    assert client.v1.identity.verification_sessions.retrieve(session).status == "verified"
