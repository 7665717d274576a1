"""Why a verification can fail: the codes of `last_error`, and what to tell people."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
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

NEUTRAL = "We could not verify your identity. Please try again."
"""For a code that this release does not know."""

SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "abandoned": "You have not finished the verification yet. You can continue at any time.",
        "consent_declined": "You did not agree to the verification. You can start again.",
        "country_not_supported": "We cannot verify documents of your country.",
        "device_not_supported": "Your device has no camera we can use. Please try another one.",
        "document_expired": "Your document has expired. Please try again with a valid one.",
        "document_type_not_supported": "We do not accept such a document. Please use another.",
        "document_unverified_other": "We could not read your document. Please try again.",
        "email_unverified_other": "We could not verify your e-mail address. Please try again.",
        "email_verification_declined": "You did not confirm your e-mail address. Please try again.",
        "id_number_insufficient_document_data": "Your document does not show enough to check your"
        " ID number. Please use another document.",
        "id_number_mismatch": "Your ID number does not match your name and date of birth. Please"
        " check it and try again.",
        "id_number_unverified_other": "We could not verify your ID number. Please try again.",
        "phone_unverified_other": "We could not verify your phone number. Please try again.",
        "phone_verification_declined": "You did not confirm your phone number. Please try again.",
        "selfie_document_missing_photo": "Your document shows no photo. Please use one that does.",
        "selfie_face_mismatch": "Your selfie does not match the photo on your document. Please try"
        " again.",
        "selfie_manipulated": "We could not accept your selfie. Please take a new one.",
        "selfie_unverified_other": "We could not verify your selfie. Please try again.",
        "under_supported_age": "You are too young to be verified.",
    }
)
"""A sentence for each reason that may be shown to the person. To translate, give a mapping of your
own to `sentence_for`."""


def sentence_for(
    reason: str | None, sentences: Mapping[str, str] = SENTENCES, neutral: str = NEUTRAL
) -> str:
    """Return a sentence for the person; `Outcome.user_can_retry` says whether to try again.

    Args:
        reason: `v.outcome.reason`. One that is not in `sentences`, and none, gets `neutral`.
        sentences: by reason, in the person's language.
        neutral: the sentence for every other reason.
    """
    return sentences.get(reason or "", neutral)
