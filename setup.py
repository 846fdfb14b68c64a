"""Builds the C++ tokenizer engine and maps kernels/ to ``llmfast.kernels``; metadata is in pyproject.toml."""

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
    # No -march: the engine picks its instruction set when it runs, so one wheel serves every machine.
    flags = ["-std=c++20", "-O3", "-fvisibility=hidden", "-fno-strict-aliasing", "-g0"]

macros = [("NB_COMPACT_ASSERTIONS", "1")]
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    macros.append(("NB_FREE_THREADED", "1"))  # the engine does without the GIL: importing it must not bring it back

# The other folders of csrc/ hold its tests.
rooms = ["bind", "encode", "merge", "pretokenize", "system", "train", "vocabulary"]

engine = Extension(
    "llmfast._bpe",
    sources=sorted(str(path) for room in rooms for path in Path("csrc", room).glob("*.cpp")),
    depends=sorted(str(path) for room in rooms for path in Path("csrc", room).glob("*.h")),
    include_dirs=["csrc", *(str(NANOBIND / part) for part in ("include", "src", "ext/robin_map/include"))],
    define_macros=macros,
    extra_compile_args=flags,
    language="c++",
)

# kernels/ is never installed as a top-level package: Hugging Face publishes one of that name.
kernels = ["llmfast.kernels", *(f"llmfast.kernels.{package}" for package in find_packages("kernels"))]

setup(
    packages=[*find_packages(include=["llmfast", "llmfast.*"]), *kernels],
    package_dir={"llmfast": "llmfast", "llmfast.kernels": "kernels"},
    ext_modules=[engine],
    cmdclass={"build_ext": ParallelBuild},
)
