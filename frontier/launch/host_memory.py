"""Host memory of CPU training: keep freed blocks in the process instead of handing them back each step."""

import ctypes
import gc

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc to serve all blocks from a heap that it never trims; returns whether it agreed.

    By default glibc maps each block over 32 MiB (at first, over 128 KiB) afresh and unmaps it on free, so that every
    step pays page faults for all of its activations. The price of keeping them: the process stays at its peak
    size, and a fragmented heap may exceed it. Call it once, before tensors are made. Does nothing and returns
    False where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
        settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
        return all(libc.mallopt(name, value) == 1 for name, value in settings)
    except (OSError, AttributeError, TypeError):
        return False


def settle_objects() -> None:
    """Collect garbage, and leave all objects that are alive out of later collections.

    A step makes thousands of Python objects, so the collector starts often, and now and then it walks through everything that
    imports and models have made: 4 % of the main thread's time in a step of 370 ms on a CPU. Call it once, when all is built.
    """
    gc.collect()
    gc.freeze()
