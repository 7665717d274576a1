pytest_plugins = ["identity_webhooks.testing.stack"]
