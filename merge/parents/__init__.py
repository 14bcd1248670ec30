"""Models on disk: opened, checked against each other, mapped."""
