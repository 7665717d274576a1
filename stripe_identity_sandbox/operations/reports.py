"""Verification reports."""

from stripe_identity_sandbox import wire
from stripe_identity_sandbox.objects import REPORT_EXPANDS, Expand, Json, Report, report_view
from stripe_identity_sandbox.operations.base import (
    SESSIONS_READ,
    Call,
    filters,
    may_see_sensitive,
    operation,
    report_by_id,
)
from stripe_identity_sandbox.parameters import EXPAND, PAGE, Enum, Text, TimeRange

REPORTS = "/v1/identity/verification_reports"


@operation(
    "GET",
    REPORTS,
    SESSIONS_READ,
    PAGE
    | {
        "client_reference_id": Text(),
        "created": TimeRange(),
        "type": Enum(("document", "id_number")),
        "verification_session": Text(),
    },
)
def list_reports(call: Call) -> Json:
    """List reports, newest first."""
    tree = wire.expansion(call.params.get("expand", ()), REPORT_EXPANDS, on_list=True)
    if wire.sensitive(tree, REPORT_EXPANDS):
        may_see_sensitive(call, None)  # as of sessions: also when the list will be empty
    wanted = filters(call, "client_reference_id", "type")
    session = call.params.get("verification_session")
    return wire.page(
        [report for report in call.world.reports.by_id.values() if report.account == call.account],
        call.params,
        url=REPORTS,
        find=lambda cursor, param: report_by_id(call, cursor, status=400, param=param),
        keep=lambda report: (
            session in {None, report.session}
            and wire.within(report.created, call.params.get("created"))
            and all(getattr(report, name) == value for name, value in wanted.items())
        ),
        view=lambda report: show_report(call, report, tree),
    )


@operation("GET", f"{REPORTS}/<report>", SESSIONS_READ, EXPAND)
def retrieve_report(call: Call) -> Json:
    """Retrieve a report."""
    report = report_by_id(call)
    return show_report(call, report, wire.expansion(call.params.get("expand", ()), REPORT_EXPANDS))


def show_report(call: Call, report: Report, expand: Expand) -> Json:
    """Return the report as this key may see it."""
    if wire.sensitive(expand, REPORT_EXPANDS):
        may_see_sensitive(call, call.world.sessions[report.session])
    return report_view(report, expand)
