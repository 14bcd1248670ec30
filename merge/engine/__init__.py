"""The resident model: where it lies, and how its weights are overwritten."""
