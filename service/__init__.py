"""The web process: verify a delivery, accept its event, respond. Also what all processes share."""
