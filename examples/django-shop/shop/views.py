"""In your app the user is who has logged in."""

import os

import stripe
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.views.decorators.http import require_POST

from shop.models import VerifiedUser


@require_POST
def verify(request: HttpRequest, user: str) -> HttpResponse:
    base = os.environ.get("STRIPE_API_BASE", "https://api.stripe.com")
    api = stripe.StripeClient(os.environ["STRIPE_API_KEY"], base_addresses={"api": base})
    session = api.v1.identity.verification_sessions.create(
        {"type": "document", "client_reference_id": user}
    )
    return HttpResponseRedirect(session.url)


def show(request: HttpRequest, user: str) -> JsonResponse:
    return JsonResponse({"verified": VerifiedUser.objects.filter(user_id=user).exists()})
