"""What kernels of several operations share."""

import triton
import triton.language as tl

from engram_kernels.backend import INTERPRETED

COMPILED = tl.constexpr(not INTERPRETED)  # the interpreter has no inline assembly


@triton.jit
def append(items, item):
    return items + (item,)
