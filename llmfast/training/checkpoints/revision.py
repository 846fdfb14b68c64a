"""Which code made a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from llmfast import __version__


def revision() -> dict[str, str | None]:
    """Versions of llmfast and torch, and the git commit of the folder that the program was started in (or None)."""
    return {"llmfast": __version__, "torch": torch.__version__, "git": git_commit(Path.cwd())}


def git_commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``, with ``+changes`` where files differ from it; None outside of git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return answer.stdout.strip()
