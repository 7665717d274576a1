"""Plays Stripe Identity: for development and tests only."""
