"""Random masks by a counter-based hash of (mask_seed, tensor name, parent name, flat index).

Nothing is stored, no global generator is touched, and the bits do not depend on blocks, order,
process or device. Entry k is kept iff its uniform number u_k is at least the drop rate, so a higher
rate only ever drops more (Yu et al., arXiv:2311.03099, Eq. 1). What is costly in the hash is done
once per entry for all parents. Knows no files and no models.

Shapes: N entries of a tensor or of a run of it.
"""

import hashlib
import math
from functools import lru_cache

from torch import Tensor

# Multipliers of the 32-bit integer hash "lowbias32" (C. Wellons, 2018), as signed int32.
_M1 = 0x7FEB352D
_M2 = 0x846CA68B - (1 << 32)


def mixed(index: Tensor, key: Tensor) -> Tensor:
    """Pseudo-random bits of entries; `stream_keys` says how a parent's own come from them.

    Logical shifts are arithmetic ones with the sign masked: int32 is all that every device and
    compiler multiplies alike.

    Args:
        index: int32 (N,) flat index, modulo 2**32; left unchanged.
        key: int32, 0-dim or (N,); first of `stream_keys`.

    Returns:
        int32 (N,), "lowbias32" of index xor key.
    """
    x = index ^ key
    x = (x ^ ((x >> 16) & 0xFFFF)) * _M1
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _M2
    return x ^ ((x >> 16) & 0xFFFF)


@lru_cache(maxsize=1 << 14)
def stream_keys(mask_seed: int, tensor: str, parent: str, high: int) -> tuple[int, int]:
    """Key and odd multiplier, signed int32, of a parent's uniform numbers in one tensor.

    ``u = (mixed(index, key) * multiplier + 2**31) / 2**32``, the product wrapped to int32.

    The key is the same for all parents. Multiples of one sequence by two odd numbers are as good as
    independent unless small multiples of the two are equal, which random ones have in a millionth
    of all pairs.

    Args:
        mask_seed: Integer in ``[0, 2**64)``.
        tensor: Its name.
        parent: Its name.
        high: The flat index divided by 2**32.
    """
    shared, own = (
        hashlib.sha256("\0".join((str(mask_seed), str(high), *names)).encode()).digest()[:4]
        for names in ((tensor,), (tensor, parent))
    )
    key = int.from_bytes(shared, "little", signed=True)
    return key, int.from_bytes(own, "little", signed=True) | 1


def threshold(drop_rate: float) -> int:
    """Smallest bits that are kept: ``u >= drop_rate`` iff ``bits >= threshold``, as signed int32.

    The last step of u is always kept.
    """
    return min(math.ceil(drop_rate * 2**32), 2**32 - 1) - 2**31
