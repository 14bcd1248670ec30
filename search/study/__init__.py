"""The order of things: baselines, search loop, confirmation, ablation; resume."""
