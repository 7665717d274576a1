"""Handlers in files: each module here is a plugin, loaded by the same call as everyone's."""
