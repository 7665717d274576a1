"""Tells Acme's accounts who was verified."""

from pydantic_settings import BaseSettings, SettingsConfigDict

from identity_webhooks import Discard, Retry, Verification, on


class Accounts(BaseSettings):
    """Handlers with settings: ACME_URL, and ACME_RETRY_DELAY if it is not to be a minute."""

    model_config = SettingsConfigDict(env_prefix="acme_")

    url: str
    retry_delay: float = 60

    @on("verified", needs=["verified_outputs.dob"], retries=5, timeout=10)
    def grant_access(self, v: Verification) -> None:
        """Open the account."""
        if v.subject is None:
            raise Discard("no account")
        if self.url.endswith("/closed"):
            raise Retry("accounts are closed", delay=self.retry_delay)


@on("requires_input", reason=["document_expired", "abandoned"])
def remind(v: Verification) -> None:
    """Ask the user to try again."""
    v.log.info("reminded", subject=v.subject, reason=v.outcome.reason)
