"""Merge parents by a recipe into weights in memory. Knows torch, neither search nor evals."""
