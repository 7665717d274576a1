"""Built-in handlers: each module here is a plugin, loaded like every other plugin."""
