"""Ready searches: each folder holds a `search.yaml` that runs unchanged."""
