"""Why a verification can fail: the codes of `last_error` in Stripe's API."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal[
    "abandoned",
    "consent_declined",
    "country_not_supported",
    "device_not_supported",
    "document_expired",
    "document_type_not_supported",
    "document_unverified_other",
    "email_unverified_other",
    "email_verification_declined",
    "id_number_insufficient_document_data",
    "id_number_mismatch",
    "id_number_unverified_other",
    "phone_unverified_other",
    "phone_verification_declined",
    "selfie_document_missing_photo",
    "selfie_face_mismatch",
    "selfie_manipulated",
    "selfie_unverified_other",
    "under_supported_age",
]
"""What `reason=` may name: every code in the schema of API version 2026-10-28.endive. Stripe may
add codes, so `Outcome.reason` is any text."""

REASONS: tuple[Reason, ...] = get_args(Reason)
