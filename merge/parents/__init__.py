"""Models on disk: open them, check that they fit together, map them into memory."""
