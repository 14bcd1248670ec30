"""lm-eval tasks, built once: configurations, splits, prompts and metrics."""
