"""Differentiable losses of a task's items, smooth twins of its metric."""
