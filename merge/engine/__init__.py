"""The resident model: placement in memory, and how recipes overwrite its weights."""
