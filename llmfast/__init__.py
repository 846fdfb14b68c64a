"""llmfast: Triton kernels, a C++ BPE engine, and a readable package for training language models.

Importing this touches no GPU and loads no heavy library; each subpackage is imported where it is used.
"""

from llmfast._version import __version__

__all__ = ["__version__"]
