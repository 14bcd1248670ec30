"""Scores item by item: types, store, fingerprint, audit."""
