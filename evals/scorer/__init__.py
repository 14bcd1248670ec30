"""Score the resident model on tasks, item by item."""
