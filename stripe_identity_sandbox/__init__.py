"""A Stripe Identity for development and tests: stateful API, hosted page, signed webhooks.

Run it with ``stripe-identity-sandbox serve``, or ``python -m stripe_identity_sandbox serve``.
It imports nothing of the service in whose repository it lives, so the two cannot share a
misreading of Stripe.
"""
