"""The compile check: every launch that the library can make, compiled for every chip, without a GPU.

``python -m llmfast.kernels.compile_check`` runs each op's host code on meta tensors, as if on each chip in turn. Where
a launch would happen it compiles the kernel for that chip with Triton's own ptxas and writes down what came
out. It fails where a kernel

- needs more shared memory than the chip gives a program, or spills registers to memory inside a loop,
- issues more matrix products in a loop than its tiles need: warps that repeat one another's products,
- waits for matrix products before the exponentials that are meant to run beside them,
- computes in float64, lacks an instruction that it is meant to use, or contains one that it is not to use,
- has no row in the committed table (``table.json``, readable as ``TABLE.md``), or takes more registers than
  its row there, past a margin.

``--write`` renews the table. ``--again SHARE`` takes the word of the table for kernels whose source, types, constants
and options are those that the table was written with, but for a share of them chosen at random; with ``--write``, too,
so that ``--write --again 0`` adds what is new. Compiled kernels stay
in Triton's cache (``TRITON_CACHE_DIR``), keyed by a hash of their source, so that a second run compiles only what
changed.

A family of ops takes part by a function ``compile_cases(chip)`` in its file ``compile_cases.py``, which yields
``CompileCase``s.
"""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CompileCase"]


@dataclass(frozen=True)
class CompileCase:
    """One call of an op; each kernel that it launches becomes a row of the table.

    Args:
        op: the public name of the op, as ``rms_norm``.
        case: the shape and options that set it apart, as ``4096 bf16``.
        run: runs the op's host code (the functions behind its operator) on meta tensors.
        expect: instructions that must appear, as ``{kernel name: ("wgmma",)}``, by their names in
            ``measure.INSTRUCTIONS``.
        avoid: instructions that must not appear, likewise.
        overlap: the smallest share of a loop's exponentials that must run while a product of a warp group is under
            way, by kernel name.
    """

    op: str
    case: str
    run: Callable[[], object]
    expect: dict[str, tuple[str, ...]] | None = None
    avoid: dict[str, tuple[str, ...]] | None = None
    overlap: dict[str, float] | None = None
