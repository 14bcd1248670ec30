"""Descent in the genes of a space along the gradient of the items' losses."""
