"""Triton where it is installed, and else stand-ins that let the kernel files be imported.

Triton has no wheels for macOS and Windows. There the ops run on their reference path, and what the kernel
files do with Triton while they are imported (decorate functions, name types) does nothing.
"""

try:
    import triton
    import triton.language as tl
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import ampere, hopper

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False

    class _Anything:
        """Answers every attribute and call; as a decorator it gives the function back."""

        def __getattr__(self, name):
            return self

        def __call__(self, *args, **options):
            return args[0] if len(args) == 1 and callable(args[0]) and not options else self

    triton = tl = gluon = gl = ampere = hopper = _Anything()

# Whether Triton interprets its kernels, on CPU tensors: fixed when the kernel files are imported.
INTERPRETING = HAS_TRITON and bool(triton.knobs.runtime.interpret)
