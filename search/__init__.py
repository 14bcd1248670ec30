"""Past scores to the next recipe: configuration, command line, study, leaderboard. Knows Optuna."""
