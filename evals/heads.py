"""Logits where they are read, by the model's own head. Knows torch and transformers' models.

A causal model of transformers is a backbone and a head: projection, and for some models a scale
or a soft-cap. The head works on whatever hidden states it is given, so the backbone's are cut to
the scored positions before the head sees them; the model's own code does the rest.

Legend: B rows, T tokens, H hidden size, S scored positions, V vocabulary.
"""

from typing import Any

from torch import Tensor


def scored_logits(model: Any, cells: Tensor, **inputs: Any) -> Tensor:
    """Call a model and return its logits at some positions only.

    Args:
        model: A causal language model of transformers; left unchanged.
        cells: Wanted positions as indices into B * T (S,).
        **inputs: What the model's forward takes.

    Returns:
        Logits (S, V) in the dtype the model gives.

    Raises:
        NotImplementedError: If the model has no backbone whose hidden states its head follows.
    """
    backbone = getattr(model, "base_model", model)
    if backbone is model:
        raise NotImplementedError(f"{type(model).__name__} has no backbone apart from its head")

    def cut(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0]  # (B, T, H)
        kept = hidden.flatten(0, 1)[cells.to(hidden.device)][None]  # (1, S, H)
        if isinstance(output, tuple):
            return (kept, *output[1:])
        output.last_hidden_state = kept
        return output

    handle = backbone.register_forward_hook(cut)
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    if logits.shape[:2] != (1, cells.numel()):
        raise NotImplementedError(
            f"the head of {type(model).__name__} does not follow its backbone: logits of "
            f"{tuple(logits.shape)} for {cells.numel()} positions"
        )
    return logits[0]
