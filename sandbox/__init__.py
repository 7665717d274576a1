"""A Stripe Identity for development and tests: stateful API, hosted page, signed webhooks.

Run it with ``python -m sandbox serve``. It imports nothing of the service it is used to test,
so the two cannot share a misreading of Stripe; it signs with Stripe's own SDK.
"""
