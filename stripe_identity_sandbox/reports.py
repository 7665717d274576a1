"""The reports: one for each attempt, with what it found."""

from stripe_identity_sandbox import checks
from stripe_identity_sandbox.journal import Journal, new_id
from stripe_identity_sandbox.objects import Report, Session


class Reports:
    """The reports of every account, oldest first. ``marker`` is in all personal data."""

    def __init__(self, journal: Journal, *, marker: str) -> None:
        self.by_id: dict[str, Report] = {}
        self._journal = journal
        self._marker = marker

    def make(self, session: Session, outcome: str, *, at: float) -> Report:
        """Keep what an attempt found that ended at this time with this outcome."""
        report = Report(
            id=new_id("vr_1"),
            account=session.account,
            created=int(at),
            session=session.id,
            type=session.type or "document",
            # Stripe's type has no others: what a flow asks for shows in the session only.
            options={k: v for k, v in session.options.items() if k in {"document", "id_number"}},
            client_reference_id=session.client_reference_id,
            verification_flow=session.verification_flow,
            parts=checks.attempt(
                session.type,
                session.options,
                session.provided_details,
                outcome,
                marker=self._marker,
                file_id=lambda: new_id("file_1"),
            ),
        )
        self._journal.keep(self.by_id, report)
        return report

    def of(self, session: Session) -> list[Report]:
        """Return the reports of a session, oldest first."""
        return [report for report in self.by_id.values() if report.session == session.id]

    def erase(self, session: Session) -> None:
        """Put placeholders where personal data was."""
        for report in self.of(session):
            report.parts = {name: checks.redact_part(part) for name, part in report.parts.items()}
            self._journal.touch(report)
