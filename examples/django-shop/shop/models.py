from django.db import models


class VerifiedUser(models.Model):
    """A row that the plugin writes when a user was verified, and deletes on redaction."""

    user_id = models.CharField(max_length=100, primary_key=True)
    session = models.CharField(max_length=100)

    class Meta:
        db_table = "verified_users"
