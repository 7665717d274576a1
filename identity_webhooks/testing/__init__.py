"""Test a handler without a worker: no network, no Redis, no account.

from identity_webhooks.testing import conformance, run, verification

def test_grants_access():
    result = run(grant_access, verification("verified", dob=date(1990, 7, 17), reference="u-1"))
    assert result.status == "done"
    assert conformance(grant_access) == []
"""

from identity_webhooks.testing.builders import verification
from identity_webhooks.testing.conformance import conformance
from identity_webhooks.testing.running import Result, run

__all__ = ["Result", "conformance", "run", "verification"]
