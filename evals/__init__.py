"""Model in memory to scores, item by item. Knows torch and lm-eval, not merge nor search."""
