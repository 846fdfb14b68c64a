"""Every loop over a caller's text ends: repetitive text, on which tokens depend on bytes far away, in a process that an
alarm would end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
from shared_data import shared_data

REPETITIVE = Path(__file__).resolve().parents[2] / "csrc" / "fuzz" / "repetitive.py"
RULER = "-+-+-----+-----+-----+-----+------+------+------+//" + "=" * 103 + "/" + "=" * 16


def run(code: str, *arguments: str, seconds: int = 120) -> str:
    """What a Python program prints; an error where it takes longer, though nothing in it may notice a signal."""
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(shared_data("tiktoken"))}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_rule_of_a_table_ends_with_tiktokens_ids():
    """A window that stepped back and widened came back to where it was, for ever."""
    code = "import llmfast, sys; print(llmfast.get_encoding('cl100k_base').encode(sys.argv[1]))"
    found = run(code, RULER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
        ids = tiktoken.get_encoding("cl100k_base").encode(RULER)
    assert len(ids) == 18
    assert found.strip() == str(ids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ends a loop without end from another process")
def test_repetitive_text_on_published_trained_and_shuffled_vocabularies():
    """Seeds 5 and 8 train vocabularies on which windows never came to an end."""
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(shared_data("tiktoken"))}
    command = [sys.executable, str(REPETITIVE), "4", "5", "400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "9,600 repetitive texts have tiktoken's ids\n"
