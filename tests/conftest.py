"""What holds for every test: one thread a worker, no network, nothing shadowed; no GPU, no GPU tests."""

import os
import sys
from pathlib import Path

import pytest

# Set before torch is imported. xdist runs a worker a core: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Without a GPU, Triton's kernels run in its interpreter, which must be chosen before Triton is imported. It
# changes nothing for other tests: CPU tensors take plain PyTorch unless a test asks for the kernels.
if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# `python -m pytest` puts the repository root first on the path, where ./kernels hides Hugging Face's package
# of that name, which transformers imports.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]


def pytest_addoption(parser):
    parser.addoption(
        "--every-family", action="store_true", help="try every model family of transformers, and not only a sample"
    )
    parser.addoption(
        "--screenshots", action="store_true", help="write docs/images/app-*.png, pictures of the dashboard (tests/app)"
    )
    parser.addoption("--studies", action="store_true", help="run the quick size of every pipeline in recipes/")


def pytest_collection_modifyitems(items):
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch finds none here"))
