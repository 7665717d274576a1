"""What an old stripe-python does, against a sandbox: argv are its url, the SDK's version, and the
line of the page that sets the url.

Run with that version first on the path. The module-level API is the only one old versions have.
"""

import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO

import stripe

url, version, line = sys.argv[1:]
assert version == stripe.VERSION if hasattr(stripe, "VERSION") else stripe.version.VERSION

exec(line)  # noqa: S102 -- of our own page
assert stripe.api_base == url
stripe.api_key = "sk_test_old"
Session = stripe.identity.VerificationSession
InvalidRequestError = (
    stripe if int(version.split(".")[0]) > 7 else stripe.error
).InvalidRequestError

made = Session.create(
    type="document",
    options={
        "document": {
            "allowed_types": ["passport", "id_card"],
            "require_matching_selfie": True,
            "require_live_capture": False,
        }
    },
    metadata={"user": "a", "paying": True, "count": 3},
    expand=["verified_outputs"],
)
assert made.status == "requires_input"
assert made.options.document.require_matching_selfie is True
assert made.options.document.require_live_capture is False
assert made.options.document.allowed_types == ["passport", "id_card"]
assert made.metadata["paying"] in {"True", "true"}

changed = Session.modify(made.id, metadata={"count": "", "more": "x"})
assert set(changed.metadata.keys()) == {"user", "paying", "more"}
Session.modify(made.id, metadata="")
assert not Session.retrieve(made.id).metadata

hour_ago = datetime.now(UTC) - timedelta(hours=1)
for created in ({"gte": hour_ago}, {"gte": int(hour_ago.timestamp())}):
    found = Session.list(limit=2, created=created, status="requires_input")
    assert made.id in [session.id for session in found.auto_paging_iter()]

endpoint = stripe.WebhookEndpoint.create(
    url="http://127.0.0.1:9/", enabled_events=["*"], connect=False
)
stripe.WebhookEndpoint.modify(endpoint.id, disabled=True)
assert stripe.WebhookEndpoint.retrieve(endpoint.id).status == "disabled"
endpoint.delete()

assert stripe.Event.list(delivery_success=True, types=["identity.verification_session.created"])
assert Session.cancel(made.id).status == "canceled"
assert Session.redact(made.id).redaction.status == "processing"
for wrong in ({"type": "visa"}, {"type": "document", "surprise": 1}):
    try:
        Session.create(**wrong)
    except InvalidRequestError:
        continue
    raise AssertionError("it had to be refused")

if version.startswith("13."):
    client = stripe.StripeClient("sk_test_old", base_addresses={"api": url})
    kinds = [f"v1.identity.verification_session.{name}" for name in ("created", "canceled")]
    hook = {"url": "http://127.0.0.1:9/"}
    destination = client.v2.core.event_destinations.create(
        {
            "name": "old", "type": "webhook_endpoint", "event_payload": "thin",
            "enabled_events": kinds, "webhook_endpoint": hook, "include": ["webhook_endpoint.url"],
        }
    )  # fmt: skip
    found = client.v2.core.event_destinations.retrieve(
        destination.id, {"include": ["webhook_endpoint.url"]}
    )
    assert found.webhook_endpoint.url == hook["url"]
    for names in (kinds, kinds[:1]):
        events = client.v2.core.events.list({"object_id": made.id, "types": names}).data
        assert [event.type for event in events] == names[::-1]

refused = ""
try:
    stripe.File.create(purpose="dispute_evidence", file=BytesIO(b"x"))
except InvalidRequestError as error:
    refused = str(error)
assert "Unrecognized request URL" in refused, "no upload leaves, either"
