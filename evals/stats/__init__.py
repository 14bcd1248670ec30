"""Paired tests and racing: pure functions of item scores."""
