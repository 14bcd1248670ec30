"""Search spaces for tests."""

from typing import Any

from heterosis.search.config.config import Config
from heterosis.search.propose.space import build_space

KINDS = ("attn", "mlp", "other")
N_LAYERS = 4
GROUPS = ("embed", *(f"layers.{i}.{kind}" for i in range(N_LAYERS) for kind in KINDS), "head")


def make_space(
    parents=("a", "b"),
    method: str | list[str] = "task_arithmetic",
    groups=GROUPS,
    rules=None,
    tensors=(),
    **space: Any,
):
    """A space over tiny layer groups; `method` is one name, or several to choose from."""
    merge = {"method": method} if isinstance(method, str) else {}
    config = Config.model_validate(
        {
            "name": "tiny",
            "base": "base",
            "parents": {name: name for name in parents},
            "tasks": [{"task": "t"}],
            "merge": merge | {"layer_groups": rules or {}},
            "space": space if merge else space | {"method": method},
        }
    )
    return build_space(config, groups, tensors)


TENSORS = (
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{name}.weight"
        for i in range(N_LAYERS)
        for name in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
)

SPACE = make_space(depth={"control_points": 2}, modules=["attn", "mlp"])
