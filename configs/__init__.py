"""Ready searches: each folder holds a `search.yaml` that runs as it stands."""
