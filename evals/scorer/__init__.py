"""A resident model in, item scores out."""
