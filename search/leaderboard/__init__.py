"""Rows, ranks, verdicts and columns of a leaderboard; draws nothing but text."""
