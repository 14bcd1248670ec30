"""mergekit files for tests: tensor names, and recipes drawn at random."""

import random
from collections.abc import Sequence

from heterosis.merge.recipe.coefficients import Coefficients
from heterosis.merge.recipe.groups import Grouping
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Recipe

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm")
TENSORS = (
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(4) for part in PARTS),
    "model.norm.weight",
    "lm_head.weight",
)
ONE = ("slerp", "nearswap", "arcee_fusion")
EQUAL = ("karcher", "model_stock", "sce")
DIGITS = (0.0, 0.3, 0.1234567890123456, 0.9876543210987654, 1 / 3, 1e-12)


def drawn(method: str, seed: int, groups: Sequence[str] | None = None) -> Recipe:
    """A recipe of a method with coefficients of its own in every layer group."""
    draw = random.Random(repr((method, seed)))
    row = METHODS[method]
    parents = ("p", "q", "r")[: 1 if method in ONE else row.most_parents or 3]
    coefficients = {}
    for group in groups or Grouping().names(TENSORS):
        weights = [draw.choice((0.5, draw.random() + 0.1)) for _ in parents]
        if method in (*EQUAL, "nearswap", "arcee_fusion"):
            weights = [1.0 if method in ONE else 0.7] * len(parents)
        rates = [draw.choice(DIGITS) if row.uses_drop_rate else 0.0 for _ in parents]
        parameters = {
            p.name: tuple(
                draw.choice((0.01, 0.02)) for _ in range(1 if p.is_shared else len(parents))
            )
            for p in row.parameters
            if p.unit != "switch"
        }
        if "della" in method:  # mergekit has no window at the ends
            rates = [draw.choice((0.0, 0.3, 1 / 3)) for _ in parents]
        lambda_ = draw.random() if row.uses_lambda and method != "sce" else None
        coefficients[group] = Coefficients(tuple(weights), tuple(rates), parameters, None, lambda_)
    return Recipe(method, parents, coefficients)
