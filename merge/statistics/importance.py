"""Rank maps and importance masks: one byte per entry of a delta.

A rank map holds the rank of |delta| in its row (DELLA), an importance mask the entries that
arcee_fusion takes. Both are computed in blocks of rows. Knows no files and no recipes.

Shapes: R rows of C entries; a row is the last dimension, a tensor of one dimension is one row.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..blocks import blocks, row_blocks
from .quantiles import delta, order_statistics, sort_rows

RANKS = 256
"""Steps of a rank map: the values of a byte."""
LONG_ROW = 1 << 20
"""Entries of a row up to which it is sorted at once, at some 50 bytes of workspace per entry."""


def rank_map(base: Float[Tensor, "*S"], parent: Float[Tensor, "*S"]) -> UInt8[Tensor, "*S"]:
    """Return the rank of each entry of the delta in its row, by magnitude, in 256 steps.

    Args:
        base: Any shape ``(*S)``, floating point.
        parent: ``(*S)``, any floating dtype, on the device of ``base``.

    Returns:
        uint8 ``(*S)`` on the same device: floor(256 * number of strictly smaller |delta| in the
        row / C). Equal magnitudes share a code.

    Source:
        Deep et al., arXiv:2406.11617, Sec. 3 (MAGPRUNE ranks the delta parameters of a row).
    """
    if base.numel() == 0:
        return torch.empty_like(base, dtype=torch.uint8)
    rows_base, rows_parent = _rows(base), _rows(parent)
    out = torch.empty(rows_base.shape, dtype=torch.uint8, device=base.device)
    if out.shape[1] > LONG_ROW:
        for row, *tensors in zip(out, rows_base, rows_parent, strict=True):
            _write_long_row(row, *tensors)
    else:
        for run in _runs(out):
            _write_codes(out[run], rows_base[run], rows_parent[run])
    return out.view(base.shape)


def _write_codes(out: Tensor, base: Tensor, parent: Tensor) -> None:
    # Sorts pairs (magnitude, column) as whole numbers: the bits of non-negative floats are ordered
    # as the floats are. The code of an entry is that of the first of its equals in the order.
    columns = torch.arange(out.shape[1], device=out.device)
    bits = delta(base, parent).abs_().view(torch.int32)
    pairs = sort_rows((bits.to(torch.int64) << 32).bitwise_or_(columns))
    bits = pairs >> 32
    codes = torch.zeros_like(pairs)
    place_codes = columns * RANKS // out.shape[1]
    torch.where(bits[:, 1:] != bits[:, :-1], place_codes[1:], codes[:, 1:], out=codes[:, 1:])
    codes = codes.cummax(1).values.to(torch.uint8)
    out.scatter_(1, pairs.bitwise_and_(0xFFFFFFFF), codes)


def _write_long_row(out: Tensor, base: Tensor, parent: Tensor) -> None:
    # (C,). The code is at least k iff the ceil(k * C / 256) smallest are all below the entry.
    n = out.numel()
    places = [-(-k * n // RANKS) - 1 for k in range(1, RANKS)]

    def magnitudes() -> Iterator[Tensor]:
        for run in blocks(n, base.device):
            yield delta(base[run], parent[run]).abs_()

    bounds = order_statistics(magnitudes, n, places).to(out.device)
    for run, piece in zip(blocks(n, out.device), magnitudes(), strict=True):
        out[run] = torch.searchsorted(bounds, piece, out_int32=True)


def importance_mask(base: Float[Tensor, "*S"], parent: Float[Tensor, "*S"]) -> UInt8[Tensor, "*S"]:
    """Return the mask of entries of outlying importance, which arcee_fusion takes.

    The importance of an entry is |delta| times the divergence KL(softmax(parent row) ||
    softmax(base row)) of its row; entries at or above median + 1.5 * (third - first quartile) of
    the tensor's importances are taken. Quartiles are exact, the entries at floor(q * (N - 1)) of
    the sorted importances; mergekit samples a million entries of larger tensors, and adds 1e-8 to
    the probabilities. Divergences are computed in float64: those of similar rows are lost in
    float32 rounding, which makes mergekit take different entries for a sixth of SmolLM2-135M's.

    Args:
        base: Any shape ``(*S)``, floating point.
        parent: ``(*S)``, any floating dtype, on the device of ``base``.

    Returns:
        uint8 ``(*S)`` of zeros and ones, on the same device.

    Source:
        Arcee Fusion as in mergekit 0.1.5, `merge_methods/arcee_fusion.py`; no paper.
    """
    n = base.numel()
    if n == 0:
        return torch.empty_like(base, dtype=torch.uint8)
    rows_base, rows_parent = _rows(base), _rows(parent)
    out = torch.empty(rows_base.shape, dtype=torch.uint8, device=base.device)
    runs = list(_runs(out))
    divergences = torch.empty(len(out), 1, dtype=torch.float32, device=base.device)
    for run in runs:
        divergences[run] = _divergence(rows_base[run], rows_parent[run])

    def importances() -> Iterator[Tensor]:
        for run in runs:
            for columns in blocks(out.shape[1], out.device):
                size = delta(rows_base[run, columns], rows_parent[run, columns]).abs_()
                yield size.mul_(divergences[run])

    first, median, third = order_statistics(
        importances, n, [(n - 1) // 4, (n - 1) // 2, 3 * (n - 1) // 4]
    )
    threshold = (median + 1.5 * (third - first)).to(out.device)
    pieces = importances()
    for run in runs:
        for columns in blocks(out.shape[1], out.device):
            out[run, columns] = next(pieces) >= threshold
    return out.view(base.shape)


def _divergence(base: Tensor, parent: Tensor) -> Tensor:
    # KL(softmax(parent) || softmax(base)) of each row, float32 (R, 1), with p = softmax(parent):
    # sum_c p_c * (parent_c - base_c) - (logsumexp(parent) - logsumexp(base)).
    runs = list(blocks(base.shape[1], base.device))
    top_base, top_parent = (
        torch.stack([rows[:, run].amax(1) for run in runs]).amax(0).double().unsqueeze(1)
        for rows in (base, parent)
    )
    sum_base = sum_parent = mean = torch.zeros_like(top_base)
    for run in runs:
        ours, theirs = parent[:, run].double(), base[:, run].double()
        chances = (ours - top_parent).exp_()
        mean = mean + (chances * (ours - theirs)).sum(1, keepdim=True)
        sum_parent = sum_parent + chances.sum(1, keepdim=True)
        sum_base = sum_base + (theirs - top_base).exp_().sum(1, keepdim=True)
    gain = (top_parent + sum_parent.log()) - (top_base + sum_base.log())
    return (mean / sum_parent - gain).clamp_min(0.0).float()


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.reshape(1, -1)


def _runs(out: Tensor) -> Iterator[slice]:
    n_rows, n_columns = out.shape
    return row_blocks(n_rows, n_columns, out.device)
