"""Statistics of the parents, computed once and cached on disk."""
