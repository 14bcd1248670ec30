"""A candidate as a model: exported, described, reproduced, talked to."""
