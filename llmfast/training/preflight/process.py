"""Process settings for training on a CPU: equal bits in every run, and memory that is kept between steps."""

from __future__ import annotations

import ctypes
import sys

import torch

# mallopt's names for what it sets (glibc's malloc.h).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MIB = 2**20


def prepare_process() -> None:
    """Prepares the process for a run on the CPU."""
    torch.use_deterministic_algorithms(True)
    # Every operation writes what it allocates: to fill it first is one more pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc's allocator keep what is freed; does nothing with another allocator.

    By default glibc returns large blocks to the system, and every step gets its activations and gradients as new pages,
    zeroed at the first touch of each: at GPT-2's size a fifth to a third of a step. The process then stays as large as
    it once was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:  # musl
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 * MIB)
