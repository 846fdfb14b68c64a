"""Side-by-side measurement of llmfast and its peers; ``python -m benchmarks`` at the repository root."""

import sys
from pathlib import Path

# `python -m` put the repository root on the path, where ./kernels hides the Hugging Face package of that name
# that transformers and bitsandbytes import. This package is found by now; llmfast is installed.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
