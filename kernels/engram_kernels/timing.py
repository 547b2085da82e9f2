"""How long a GPU takes."""

from collections.abc import Callable

from triton.testing import do_bench


def median_microseconds(function: Callable, milliseconds: int) -> float:
    """Median time of a call by GPU events, the L2 cache emptied before each.

    Args:
        milliseconds: how long to repeat it.
    """
    return do_bench(function, warmup=5, rep=milliseconds, return_mode="median") * 1e3
