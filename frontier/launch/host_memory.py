"""Host memory of CPU training: keep freed blocks in the process instead of handing them back each step."""

import ctypes

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
