"""Receives: verify, accept, answer. Also what both processes share."""
