"""Makes llmfast importable from the sources, without building or installing it."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from ..results import ROOT


def place(site: Path, wheels: Path | None) -> list[str]:
    """Fills ``site``, a folder for PYTHONPATH, and returns the names of the wheels in it.

    ``kernels/`` belongs at llmfast/kernels, where only an installation puts it, so the folder holds links. The C++
    engine is not built: no kernel needs it. Wheels are unpacked, which is all that installing them would do.
    """
    shutil.rmtree(site, ignore_errors=True)
    package = site / "llmfast"
    package.mkdir(parents=True)
    for path in (ROOT / "llmfast").iterdir():
        (package / path.name).symlink_to(path)
    (package / "kernels").symlink_to(ROOT / "kernels")
    (site / "benchmarks").symlink_to(ROOT / "benchmarks")
    unpacked = sorted(wheels.glob("*.whl")) if wheels else []
    for wheel in unpacked:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return [wheel.name for wheel in unpacked]


def has_gpu() -> bool:
    return any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/dxg"))


def fingerprint() -> str:
    """Of all sources that a call depends on."""
    digest = hashlib.sha256()
    for folder in ("benchmarks", "kernels", "llmfast", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
