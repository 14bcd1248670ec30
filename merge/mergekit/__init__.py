"""Read and write mergekit's YAML."""
