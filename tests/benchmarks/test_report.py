"""Reports and pictures from result files alone."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measured(bench, tmp_path_factory):
    """Result files of an op and of whole jobs."""
    folder = tmp_path_factory.mktemp("results")
    norm = importlib.import_module("benchmarks.suites.norm")
    options = bench.Options("cpu", tiny=True, out=folder)
    for name, cases in (
        ("norm", [norm.rms_norm_case(rows, 16) for rows in (4, 8)]),
        ("loader", importlib.import_module("benchmarks.suites.loader").cases("tiny")),
    ):
        bench.run_cases(name, cases, options, say=lambda line: None)
    for file in folder.glob("*.json"):  # all bound by memory: what binds decides the units
        report = json.loads(file.read_text())
        for result in report["results"]:
            if result.get("fraction_of_gemm") is not None:
                result["fraction_of_gemm"] = result["fraction_of_copy"] / 2
        file.write_text(json.dumps(report))
    return folder


def test_pictures_are_drawn_of_what_was_measured(bench, measured, tmp_path):
    from benchmarks.reporting.plots import draw

    drawn = list(draw(measured, tmp_path))
    kinds = sorted(path.stem.rsplit("-", 1)[1] for path in drawn)
    assert kinds == ["ceiling", "ceiling", "roofline", "speed", "speed"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_reports_need_nothing_but_the_files(measured, tmp_path):
    """Trap: a report that measures, or reads a state that the reader does not have."""
    copied = tmp_path / "elsewhere"
    shutil.copytree(measured, copied)
    command = [sys.executable, "-m", "benchmarks", "report", copied]
    program = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    here = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    without_torch = subprocess.run(
        [sys.executable, "-c", program, "report", copied],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert without_torch.returncode == 0, without_torch.stderr
    assert here.stdout == without_torch.stdout
    assert "### rms_norm, forward, bfloat16" in here.stdout
    assert "tokens/s" in here.stdout


def test_jobs_report_tokens_a_second(bench, measured):
    from benchmarks.reporting.report import render

    assert "| loader | tokens=1.05M B=32 S=256 | batch | " in render(measured, short=True)
