"""Acts: claim, fetch, dispatch, settle. What a handler author imports stands here.

from workers import Verification, on

@on("verified", needs=["verified_outputs.dob"])
def grant_access(v: Verification) -> None:
    accounts.mark_verified(v.subject, born=v.sensitive.dob, key=v.idempotency_key)
"""

from workers.router import Discard, Retry, on
from workers.verification import Outcome, Sensitive, Verification

__all__ = ["Discard", "Outcome", "Retry", "Sensitive", "Verification", "on"]
