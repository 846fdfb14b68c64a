"""``llmfast bench`` is ``python -m benchmarks`` in a clone, and says what to do elsewhere."""

import subprocess
import sys

from llmfast import cli


def test_bench_lists_what_can_be_measured(tmp_path):
    program = "import sys; from llmfast.cli import main; code = main(['bench']); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "\n  attention " in done.stdout
    assert "python -m benchmarks report" in done.stdout


def test_bench_passes_its_options_on_and_keeps_relative_folders(tmp_path):
    """Trap: a change of folder on the way would write results into the clone."""
    program = "import sys; from llmfast.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "bench", "loader", "--tiny", "--out", "here"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(list((tmp_path / "here").glob("*-loader-tiny.json"))) == 1


def test_bench_without_a_clone_says_to_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llmfast.__file__", str(tmp_path / "site-packages" / "llmfast" / "__init__.py"))
    assert cli.main(["bench"]) == 2
    assert "clone the repository" in capsys.readouterr().err
