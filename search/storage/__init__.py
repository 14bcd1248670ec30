"""A study on disk: Optuna's journal, candidates, partial scores."""
