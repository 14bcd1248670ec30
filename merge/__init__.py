"""Recipe and parents to weights in memory, in one pass. Knows torch, not search nor evals."""
