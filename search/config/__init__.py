"""The YAML file of a search, section by section; imports no torch, no Optuna."""
