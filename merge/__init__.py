"""Recipe and parents to weights in memory, in one pass. Knows torch and safetensors, not search nor evals."""
