"""llmfast doctor: a finding for everything, and what a missing thing disables."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch

from llmfast.commands import doctor


@pytest.fixture(scope="module")
def findings():
    return {finding.name: finding for finding in doctor.examine()}


def test_reports_versions_of_what_is_there(findings):
    assert findings["Python"].found == sys.version.split()[0]
    assert findings["torch"].found == torch.__version__
    assert findings["torch"].ok is True
    assert findings["C++ tokenizer"].ok is True


def test_every_missing_thing_says_what_that_means(findings):
    missing = [finding for finding in findings.values() if finding.ok is not True]
    assert all(finding.note for finding in missing)


def test_every_extra_library_is_listed_with_what_installs_it(findings):
    libraries = doctor.optional_libraries()
    assert {library.extra for library in libraries} == set(doctor.EXTRAS)
    for library in libraries:
        installed = importlib.util.find_spec(library.module) is not None
        assert findings[library.module].ok is (True if installed else None)
        assert installed or f"pip install 'llmfast[{library.extra}]'" in findings[library.module].note


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compiler = next(finding for finding in doctor.examine() if finding.name == "C++ compiler")
    assert (compiler.found, compiler.ok) == ("none", None)
    assert "torch.compile" in compiler.note


def test_no_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "llmfast._bpe", None)
    monkeypatch.delattr("llmfast._bpe", raising=False)
    extension = next(finding for finding in doctor.examine() if finding.name == "C++ tokenizer")
    assert extension.ok is False
    assert "tokenizers do not work" in extension.note


def test_gpu_line_names_capability_memory_and_shared_memory(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "NVIDIA Example", 9, 0, 80 * 2**30
        multi_processor_count, shared_memory_per_block_optin = 132, 232_448

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    gpu = next(finding for finding in doctor.examine() if finding.section == "GPU")
    for part in ("NVIDIA Example", "capability 9.0", "80 GiB", "132 multiprocessors", "227 KiB"):
        assert part in gpu.found


@pytest.mark.gpu
def test_finds_the_gpu(findings):
    assert torch.cuda.get_device_name(0) in findings["GPU 0"].found


@pytest.mark.parametrize("columns", ["80", "120"])
def test_table_fits_the_terminal_and_keeps_every_word(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(doctor, "_version", lambda module: None)  # as if nothing optional were installed
    doctor.doctor()
    out = capsys.readouterr().out
    assert all(len(line) <= int(columns) for line in out.splitlines())
    assert "llmfast[track]" in out.replace("\n", "")  # rich reads [track] as a style unless told otherwise


def test_json_is_the_same_findings(capsys):
    doctor.doctor(json=True)
    names = [finding["name"] for finding in json.loads(capsys.readouterr().out)]
    assert names == [finding.name for finding in doctor.examine()]
