"""What figures were measured on, without loading a library."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("llmfast", "torch", "triton", "numpy")


def machine() -> dict[str, Any]:
    """The processor, its cores, the threads of a process if they are limited, and the GPUs."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": int(threads) if threads.isdecimal() else None,
        "gpus": gpus(),
    }


def processor() -> str:
    """The name of the processor."""
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo(), re.MULTILINE)
    return re.sub(r"\((?:R|TM)\)| Processor$", "", names[0]) if names else platform.machine()


def cpuinfo() -> str:
    """What Linux says about the processor; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def gpus() -> list[str]:
    """The names of the GPUs, as the driver's own tool lists them."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that figures depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
