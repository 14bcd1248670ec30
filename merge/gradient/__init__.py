"""The gradient of a loss with respect to a recipe's coefficients."""
