"""mergekit's YAML, read and written."""
