"""What to try next: search space, samplers, baselines, stages."""
