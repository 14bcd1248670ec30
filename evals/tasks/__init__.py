"""lm-eval tasks, built once: prompts, splits, metrics."""
