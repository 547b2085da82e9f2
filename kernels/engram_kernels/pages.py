"""Advice to the system about the pages of large arrays: it changes speed, never contents."""

import ctypes
import mmap
from functools import cache

from torch import Tensor


def advise(memory: Tensor, advice: str) -> None:
    """madvise for the whole pages of a tensor on the CPU, where the system knows this advice.

    Args:
        advice: a name in Python's `mmap`, such as "MADV_HUGEPAGE".
    """
    if not hasattr(mmap, advice):
        return
    start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = memory.data_ptr() + memory.nbytes - start
    if length > 0:
        _madvise()(ctypes.c_void_p(start), ctypes.c_size_t(length), getattr(mmap, advice))


@cache
def _madvise():
    return ctypes.CDLL(None).madvise
