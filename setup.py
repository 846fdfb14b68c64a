"""Builds the C++ extensions and maps kernels/ to ``llmfast.kernels``; metadata is in pyproject.toml."""

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

NANOBIND = Path(nanobind.__file__).parent


class ParallelBuild(build_ext):
    """Compiles the source files of an extension side by side; setuptools does one after the other."""

    def build_extensions(self):
        compile_files = self.compiler.compile

        def compile_side_by_side(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_files([source], **options), sources)
                return [object_file for group in objects for object_file in group]

        self.compiler.compile = compile_side_by_side
        super().build_extensions()


if sys.platform == "win32":
    flags = ["/std:c++20", "/O2", "/EHsc"]
else:
    # No -march: extensions pick their instruction set when they run, so one wheel serves every machine.
    flags = ["-std=c++20", "-O3", "-fvisibility=hidden", "-fno-strict-aliasing", "-g0"]
    # Multiplications and additions are fused where the source says so: all instruction sets give the same bits.
    flags.append("-ffp-contract=off")

macros = [("NB_COMPACT_ASSERTIONS", "1")]
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    macros.append(("NB_FREE_THREADED", "1"))  # the engine does without the GIL: importing them must not bring it back


def extension(name: str, sources: list[str], rooms: list[str]) -> Extension:
    """An extension of the source files ``sources`` in csrc/ and all in the folders ``rooms``."""
    return Extension(
        name,
        sources=sorted(
            ["csrc/" + source for source in sources] + [path for room in rooms for path in files(room, "cpp")]
        ),
        depends=sorted(path for room in [*rooms, "system", "bind"] for path in files(room, "h")),
        include_dirs=["csrc", *(str(NANOBIND / part) for part in ("include", "src", "ext/robin_map/include"))],
        define_macros=macros,
        extra_compile_args=flags,
        language="c++",
    )


def files(room: str, suffix: str) -> list[str]:
    return [str(path) for path in Path("csrc", room).glob(f"*.{suffix}")]


extensions = [
    extension("llmfast._bpe", [], ["bind", "encode", "merge", "pretokenize", "system", "train", "vocabulary"]),
    # The decoder shares what any extension needs: the runtime of nanobind, threads, memory and interrupts.
    extension(
        "llmfast._decoder",
        ["bind/nanobind_runtime.cpp", "system/interrupt.cpp", "system/pages.cpp", "system/parallel.cpp"],
        ["decoder", "decoder/bind", "decoder/kernels"],
    ),
]

# kernels/ is never installed as a top-level package: Hugging Face publishes one of that name.
kernels = ["llmfast.kernels", *(f"llmfast.kernels.{package}" for package in find_packages("kernels"))]

setup(
    packages=[*find_packages(include=["llmfast", "llmfast.*"]), *kernels],
    package_dir={"llmfast": "llmfast", "llmfast.kernels": "kernels"},
    ext_modules=extensions,
    cmdclass={"build_ext": ParallelBuild},
)
