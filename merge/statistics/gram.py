"""Inner products of base and deltas, and descriptive statistics of deltas.

One pass over base and parents computes, per tensor, the Gram matrix used by SLERP, Karcher and
Model Stock and the counts shown by `heterosis check`. Sums are float64 over exact products, added
in one fixed tree, so their bits do not depend on block size, machine or device. Knows no files.

Shapes: P parents, K = 1 + P vectors [base, delta_1 .. delta_P], N entries of a tensor, C chunks.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .quantiles import delta

CHUNK = 1 << 16
"""Entries whose sum is one leaf of the tree; the last chunk is padded with zeros."""
CHUNKS_PER_STEP = {"cpu": 1}
"""Chunks processed at once: one fits a core's cache; on other devices 256, which fill a GPU."""
SMALL_DELTA = 0.002
"""Bound on |delta| of most entries of a fine-tune, of which 90 % can then be dropped
(Yu et al., arXiv:2311.03099, abstract and Sec. 4)."""
SAFE_NOISE = 3.0 * SMALL_DELTA / 2.0
"""Noise per entry (rms, in units of a weight) that is harmless by the paper: see
`safe_drop_rate`."""
HIGHEST_SAFE_RATE = 0.99
"""Highest drop rate that the paper found harmless."""


def safe_drop_rate(rms_delta: float) -> float:
    """Return the highest drop rate at which DARE's noise is harmless by its paper.

    Dropping with probability p and rescaling by 1/(1-p) adds noise of rms |delta|*sqrt(p/(1-p)) to
    an entry. The paper finds p = 0.9 harmless if |delta| is below 0.002, which is taken as two
    standard deviations: an rms of 0.001, and so noise of 0.003. The rate returned gives this noise
    and is at most 0.99, the highest that the paper found harmless.

    Args:
        rms_delta: Root mean square of the delta's entries.

    Source:
        Yu et al., arXiv:2311.03099, Eq. 1-2 and Sec. 4; the noise is the variance of Eq. 2.
    """
    if rms_delta == 0.0:
        return HIGHEST_SAFE_RATE
    odds = (SAFE_NOISE / rms_delta) ** 2  # p / (1 - p)
    return min(odds / (1.0 + odds), HIGHEST_SAFE_RATE)


@dataclass(frozen=True)
class DeltaStatistics:
    """Distances of the parents from the base and from each other, over some floating entries.

    Per parent (names sorted): ``relative_norm`` is |delta| / |base| (L2), ``mean_abs_delta`` the
    mean of |delta|, ``small_share`` the share of entries with |delta| below SMALL_DELTA,
    ``changed_share`` the share with delta other than 0, ``safe_drop_rate`` the result of the
    function. Per pair of parents: ``cosine`` of the deltas and ``sign_conflict``, the share of
    the entries changed by both whose signs differ. A ratio with denominator 0 is 0.

    The statistics of a model include those of each of its tensors and layer groups.
    """

    relative_norm: Mapping[str, float]
    mean_abs_delta: Mapping[str, float]
    small_share: Mapping[str, float]
    changed_share: Mapping[str, float]
    safe_drop_rate: Mapping[str, float]
    cosine: Mapping[tuple[str, str], float]
    sign_conflict: Mapping[tuple[str, str], float]
    tensors: Mapping[str, "DeltaStatistics"] = field(default_factory=dict)
    groups: Mapping[str, "DeltaStatistics"] = field(default_factory=dict)


@dataclass(frozen=True)
class DeltaSums:
    """Sums over the entries of one tensor or, added up, of several.

    ``gram`` is the Gram matrix (K, K) of [base, deltas]. Per parent: ``absolute`` is the sum of
    |delta|, ``large`` the number of |delta| >= SMALL_DELTA. (P, P): ``shared`` is the number of
    entries that both parents change, ``opposed`` of those with different signs among them.
    """

    n_entries: float
    gram: np.ndarray
    absolute: np.ndarray
    large: np.ndarray
    shared: np.ndarray
    opposed: np.ndarray

    @classmethod
    def unpack(cls, row: np.ndarray, n_parents: int) -> "DeltaSums":
        """Return the sums in a row of `delta_sums`."""
        p, k = n_parents, 1 + n_parents
        n, gram, absolute, large, shared, opposed = np.split(
            row, np.cumsum([1, k * k, p, p, p * p])
        )
        shared, opposed = shared.reshape(p, p), opposed.reshape(p, p)
        return cls(float(n[0]), gram.reshape(k, k), absolute, large, shared, opposed)


def n_sums(n_parents: int) -> int:
    """Return the length of a row of `delta_sums`."""
    return 1 + (1 + n_parents) ** 2 + 2 * n_parents + 2 * n_parents**2


def delta_sums(tensors: Sequence[Float[Tensor, "*S"]]) -> Float64[Tensor, " sums"]:
    """Return the `DeltaSums` of one tensor as one row of numbers.

    The workspace is at most 4 * K^2 MiB on a CPU.

    Args:
        tensors: Base and P parents, each ``(*S)``, any floating dtype, on one device; unchanged.

    Returns:
        float64 (n_sums(P),) on the CPU.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    n, k = flat[0].numel(), len(flat)
    if n == 0:
        return torch.zeros(n_sums(k - 1), dtype=torch.float64)
    n_products = k * (k + 1) // 2
    sums, counts, room = [], [], None
    for vectors in _steps(flat):
        if room is None:  # once: allocating megabytes takes longer than filling them
            room = vectors.new_empty((n_products + k - 1) * vectors[0].numel(), dtype=torch.float64)
        sums.append(_products(vectors, room).cpu())
        counts.append(_counts(vectors[1:]).cpu())
    gram, absolute = (_fold(torch.cat(sums, dim=1)) + 0.0).tensor_split([n_products])  # no -0.0
    large, both = torch.stack(counts).sum(0).tensor_split([k - 1])
    balance, shared = (_symmetric(half, k - 1) for half in both.chunk(2))
    rows = [torch.tensor([n]), _symmetric(gram, k), absolute, large, shared, (shared - balance) / 2]
    return torch.cat([row.double().flatten() for row in rows])


def _steps(flat: list[Tensor]) -> Iterator[Tensor]:
    # float32 (K, C, width): base and deltas, zeros after the last entry. A short piece is padded
    # to a power of two only, since the tree adds zeros either way.
    n_entries, device = flat[0].numel(), flat[0].device
    step = CHUNK * CHUNKS_PER_STEP.get(device.type, 256)
    for start in range(0, n_entries, step):
        length = min(step, n_entries - start)
        width = min(CHUNK, 1 << (length - 1).bit_length())
        shape = (len(flat), -(-length // width) * width)
        vectors = torch.zeros(shape, dtype=torch.float32, device=device)
        base, *parents = [tensor[start : start + length] for tensor in flat]
        vectors[0, :length] = base
        for row, parent in enumerate(parents, start=1):
            vectors[row, :length] = delta(base, parent)
        yield vectors.view(len(flat), -1, width)


def _products(vectors: Tensor, room: Tensor) -> Tensor:
    # From (K, C, width): sums float64 (K * (K + 1) / 2 + P, C) of the products of vectors, the
    # upper triangle in rows, and of the |delta|. Overwrites `room`.
    k, wide = len(vectors), vectors.double()
    n_terms = k * (k + 1) // 2 + k - 1
    terms = room[: n_terms * wide[0].numel()].view(n_terms, *wide.shape[1:])
    start = 0
    for i in range(k):
        torch.mul(wide[i:], wide[i], out=terms[start : start + k - i])
        start += k - i
    torch.abs(wide[1:], out=terms[start:])
    return _fold(terms)


def _fold(x: Tensor) -> Tensor:
    # Returns a new tensor of sums over the last dimension, by halves: a fixed order. Overwrites x.
    width = x.shape[-1]
    half = 1 << (width - 1).bit_length()
    if half != width:
        x = torch.nn.functional.pad(x, (0, half - width))
    while half > 1:
        half //= 2
        x = x[..., :half].add_(x[..., half : 2 * half])
    return x[..., 0].clone()


def _counts(deltas: Tensor) -> Tensor:
    # From (P, C, width), float64: large (P), then upper triangles in rows over pairs of parents:
    # agreeing minus opposed entries, entries that both change. Sums of up to 2**24 ones and minus
    # ones are exact in float32, in any order.
    signs = deltas.sign()
    large = (deltas.abs() >= SMALL_DELTA).float().sum(-1)
    balance, shared = [], []
    for i, sign in enumerate(signs):
        product = signs[i:] * sign
        balance.append(product.sum(-1))
        shared.append(product.abs_().sum(-1))
    return torch.cat([large, *balance, *shared]).double().sum(-1)


def _symmetric(upper: Tensor, size: int) -> Tensor:
    full = upper.new_zeros(size, size)
    rows, columns = torch.triu_indices(size, size)
    full[rows, columns] = full[columns, rows] = upper
    return full


def describe(sums: DeltaSums, names: Sequence[str]) -> DeltaStatistics:
    """Return the ratios of sums.

    Args:
        sums: Sums over one tensor or several.
        names: The P parents in the order of the sums.
    """
    order = sorted(range(len(names)), key=lambda i: names[i])
    n, squares = sums.n_entries, sums.gram.diagonal()
    norms = np.sqrt(squares)

    def per_parent(number: Callable[[int], float]) -> dict[str, float]:
        return {names[i]: float(number(i)) for i in order}

    def per_pair(number: Callable[[int, int], float]) -> dict[tuple[str, str], float]:
        pairs = itertools.combinations(order, 2)
        return {(names[i], names[j]): float(number(i, j)) for i, j in pairs}

    return DeltaStatistics(
        per_parent(lambda i: _ratio(norms[1 + i], norms[0])),
        per_parent(lambda i: _ratio(sums.absolute[i], n)),
        per_parent(lambda i: _ratio(n - sums.large[i], n)),
        per_parent(lambda i: _ratio(sums.shared[i, i], n)),
        per_parent(lambda i: safe_drop_rate(_ratio(squares[1 + i], n) ** 0.5)),
        per_pair(lambda i, j: _ratio(sums.gram[1 + i, 1 + j], norms[1 + i] * norms[1 + j])),
        per_pair(lambda i, j: _ratio(sums.opposed[i, j], sums.shared[i, j])),
    )


def describe_model(
    rows: Mapping[str, np.ndarray], names: Sequence[str], group: Callable[[str], str]
) -> DeltaStatistics:
    """Return the statistics of a model, of each tensor and of each layer group.

    Args:
        rows: Tensor name -> its row of `delta_sums`.
        names: The P parents in the order of the sums.
        group: Tensor name -> name of its layer group.
    """

    def over(tensors: Sequence[str]) -> DeltaStatistics:
        total = np.sum([rows[tensor] for tensor in tensors], axis=0)
        return describe(DeltaSums.unpack(total, len(names)), names)

    members: dict[str, list[str]] = {}
    for tensor in rows:
        members.setdefault(group(tensor), []).append(tensor)
    return replace(
        over(list(rows)),
        tensors={tensor: over([tensor]) for tensor in rows},
        groups={name: over(tensors) for name, tensors in members.items()},
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 0.0
