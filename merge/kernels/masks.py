"""Random masks by a counter-based hash of (mask_seed, tensor name, parent name, flat index).

No mask is stored, no global generator is used, and the bits do not depend on blocks, order,
process or device. Entry k is kept iff its uniform number u_k is at least the drop rate, so a higher
rate only ever drops more (Yu et al., arXiv:2311.03099, Eq. 1). The costly half of the hash depends
on the place of an entry in its chunk and is kept as a table; the other half is computed once per
entry for all parents, each of which adds a multiplication. Knows no files and no models.

Shapes: N entries of a tensor or of a run of it.
"""

import hashlib
import math
from functools import lru_cache

from jaxtyping import Int32
from torch import Tensor

_CHUNK_BITS = 20
CHUNK = 1 << _CHUNK_BITS
"""Entries of a chunk: 4 MiB of hashed places, which fit into a processor's cache."""
REGION = 1 << 30
"""Entries of a region, whose chunks share keys; places in it are below 2**31."""
# Multipliers of the 32-bit integer hash "lowbias32" (C. Wellons, 2018), as signed int32.
_M1 = 0x7FEB352D
_M2 = 0x846CA68B - (1 << 32)
# Multiples below 256, so up to 2**28 entries, differ in 8 to 24 bits (of 6,430 odd numbers tried).
_M3 = 0xBDF6A2C3 - (1 << 32)


def lowbias32(x: Int32[Tensor, "*S"]) -> Int32[Tensor, "*S"]:
    """Mix 32 bits; int32 in and out, any shape, a permutation that keeps 0.

    Logical shifts are arithmetic ones with the sign masked: int32 is the only type that all
    devices and compilers multiply in the same way.
    """
    x = (x ^ ((x >> 16) & 0xFFFF)) * _M1
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _M2
    return x ^ ((x >> 16) & 0xFFFF)


def hashed_places(places: Int32[Tensor, " N"]) -> Int32[Tensor, " N"]:
    """Return the hash of entries by their places in a region.

    Args:
        places: int32 (N,) in ``[0, REGION)``: flat index modulo REGION; left unchanged.

    Returns:
        int32 (N,): lowbias32(place % CHUNK) ^ chunk * 0xBDF6A2C3.
    """
    return lowbias32(places & (CHUNK - 1)) ^ (places >> _CHUNK_BITS) * _M3


def chunk_word(chunk: int) -> int:
    """Return what to xor into the key of a chunk if `hashed_places` of the first one are used."""
    word = chunk * _M3 & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def shared_bits(
    hashed: Int32[Tensor, " N"], key: Int32[Tensor, "*one_or_N"]
) -> Int32[Tensor, " N"]:
    """Return pseudo-random bits of entries, from which `stream_keys` derives each parent's.

    Args:
        hashed: int32 (N,), `hashed_places`; left unchanged.
        key: int32, 0-dim or (N,); first of `stream_keys`.
    """
    x = (hashed ^ key) * _M2
    return x ^ ((x >> 16) & 0xFFFF)


@lru_cache(maxsize=1 << 14)
def stream_keys(mask_seed: int, tensor: str, parent: str, region: int) -> tuple[int, int]:
    """Return key and odd multiplier, signed int32, of a parent's uniform numbers in one tensor.

    ``u = (shared_bits(hashed, key) * multiplier + 2**31) / 2**32``, the product wrapped to int32.

    All parents share the key. Multiples of one sequence by two odd numbers are practically
    independent unless small multiples of the two are equal, which holds for a millionth of random
    pairs.

    Args:
        mask_seed: Integer in ``[0, 2**64)``.
        tensor: Name of the tensor.
        parent: Name of the parent.
        region: The flat index divided by REGION.
    """
    shared, own = (
        hashlib.sha256("\0".join((str(mask_seed), str(region), *names)).encode()).digest()[:4]
        for names in ((tensor,), (tensor, parent))
    )
    key = int.from_bytes(shared, "little", signed=True)
    return key, int.from_bytes(own, "little", signed=True) | 1


def threshold(drop_rate: float) -> int:
    """Return the smallest bits that are kept: ``u >= drop_rate`` iff ``bits >= threshold``, as
    signed int32.

    The last step of u is always kept.
    """
    return min(math.ceil(drop_rate * 2**32), 2**32 - 1) - 2**31
