"""Score a model in memory, item by item. Knows torch and lm-eval; knows no merge and no search."""
