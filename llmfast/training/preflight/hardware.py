"""What this machine can do: its device, the precision it computes in hardware, its peak rate where known."""

from __future__ import annotations

import os
import shutil
import sys

import torch

# Dense bfloat16 rates with float32 accumulation, in TFLOP/s, from the vendor's datasheets; the first name that the
# device's name contains is taken.
PEAK_TFLOPS = {
    "B200": 2250,
    "GB200": 2500,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def choose_device(wish: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: CUDA was asked for and there is none.
    """
    if wish == "cuda" and not torch.cuda.is_available():
        raise ValueError("training.device is cuda, but torch finds no CUDA GPU; `llmfast doctor` says what it found")
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wish)


def choose_precision(wish: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products for ``auto``, ``float32``, ``bfloat16`` or ``float16``."""
    if wish == "auto":
        if device.type == "cuda":
            in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        wish = "bfloat16" if in_hardware else "float32"
    return getattr(torch, wish)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile can work here: on a CPU it needs a C++ compiler."""
    return device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))


def peak_flops(device: torch.device, precision: torch.dtype) -> float | None:
    """Datasheet peak in FLOP/s, or None where it is not known."""
    if device.type != "cuda" or precision != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate * 1e12 for part, rate in PEAK_TFLOPS.items() if part in name), None)


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the device has: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_in_use(device: torch.device) -> int:
    """The most bytes that this process has held so far: on its GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes here
