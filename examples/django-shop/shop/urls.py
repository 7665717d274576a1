from django.urls import path

from shop import views

urlpatterns = [
    path("users/<user>", views.show),
    path("users/<user>/verify", views.verify),
]
