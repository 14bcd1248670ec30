"""Model directories written: exports and stand-alone merges."""
