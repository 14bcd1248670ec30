"""A recipe in, item scores or a typed failure out: evaluator, races, objective, workers."""
