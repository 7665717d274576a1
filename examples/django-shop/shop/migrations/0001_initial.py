from django.db import migrations, models

from identity_webhooks.once import create_table


class Migration(migrations.Migration):
    """The plugin's table, and the one in which `v.once` keeps its keys."""

    operations = [
        migrations.CreateModel(
            name="VerifiedUser",
            fields=[
                ("user_id", models.CharField(max_length=100, primary_key=True, serialize=False)),
                ("session", models.CharField(max_length=100)),
            ],
            options={"db_table": "verified_users"},
        ),
        migrations.RunPython(
            lambda apps, editor: create_table(editor.connection), migrations.RunPython.noop
        ),
    ]
