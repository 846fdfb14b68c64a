"""The one command for a rented GPU: its stages end in time, and a later call resumes what an earlier one left."""

import ast
import importlib
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(bench):
    return importlib.import_module("benchmarks.gpu.call")


@pytest.fixture
def stages(bench):
    return importlib.import_module("benchmarks.gpu.stages")


def start(*command, cwd=ROOT, **environment):
    # A pytest that is started here is no worker of the one that runs this test.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = own | {"PYTHON": sys.executable} | environment
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def program(stages, name, source, most=float("inf"), least=0):
    """A stage that runs these lines of Python; ``results`` is the folder of results."""

    def command(results, seconds, rehearsal):
        return [sys.executable, "-c", f"import sys, time; results = sys.argv[1]\n{source}", str(results)]

    return stages.Stage(name, most, least, command)


def run(call, monkeypatch, tmp_path, stages, limit=60.0, out="out"):
    monkeypatch.setattr(call, "STAGES", tuple(stages))
    monkeypatch.setattr(call, "RESERVE", 1)
    monkeypatch.setattr(call, "GRACE", 1)
    monkeypatch.setattr(call.Call, "table", lambda self: None)
    code = call.Call(limit, tmp_path / out, rehearsal=True, work=tmp_path / "work").run(None)
    return code, (tmp_path / out / "gpu_call.log").read_text(encoding="utf-8")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path):
    code, said = start("benchmarks/gpu_run.sh", "--out", tmp_path / "out")
    assert code == 0
    assert said.startswith("No GPU")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [("--quack",), ("--limit", "5"), ("--wheels", "/nowhere"), ("tests",)])
def test_what_it_does_not_know_is_refused(wrong):
    assert start("benchmarks/gpu_run.sh", *wrong)[0] == 2


def test_a_stage_that_hangs_or_fails_is_ended_and_the_next_one_runs(call, stages, monkeypatch, tmp_path):
    """Trap: a stage that ignores the interrupt, and a process of its own that outlives it."""
    hanging = """
import signal, subprocess
signal.signal(signal.SIGINT, signal.SIG_IGN)
ticking = "import sys, time\\nwhile True: open(sys.argv[1], 'a').write('.'); time.sleep(0.05)"
subprocess.Popen([sys.executable, "-c", ticking, results + "/ticks"])
time.sleep(600)"""
    begun = time.monotonic()
    code, log = run(
        call,
        monkeypatch,
        tmp_path,
        [
            program(stages, "hangs", hanging, most=4),
            program(stages, "fails", "print('before'); sys.exit(3)"),
            program(stages, "works", "print('so it does')"),
            program(stages, "too long", "print('never')", least=1000),
        ],
    )
    assert time.monotonic() - begun < 50
    assert code == 1
    assert "hangs: stopped after" in log
    assert "FAILED fails: exit code 3" in log
    assert "so it does" in log
    assert "too long: not begun" in log
    assert "never" not in log
    assert "left for the next call: hangs, too long" in log
    ticks = tmp_path / "work" / "results" / "ticks"
    size = ticks.stat().st_size
    time.sleep(0.5)
    assert ticks.stat().st_size == size


def test_a_later_call_resumes(call, stages, monkeypatch, tmp_path):
    """What is done is not done again, what filled its time comes last, and the archive has all results."""
    monkeypatch.setattr(call, "AGAIN_LAST", ("fills",))
    first = "open(results + '/first.json', 'w').write('{}')"
    parts = [
        program(stages, "measures", f"print('measured once'); {first}"),
        program(stages, "fills", "print('filling', flush=True); time.sleep(600)", most=3),
        program(stages, "waits", "open(results + '/second.json', 'w').write('{}')", least=1000),
    ]
    _, log = run(call, monkeypatch, tmp_path, parts)
    assert "measured once" in log
    parts[2] = program(stages, "waits", "open(results + '/second.json', 'w').write('{}')")
    code, log = run(call, monkeypatch, tmp_path, parts, out="out2")
    assert code == 0
    assert "measured once" not in log
    assert log.index("== waits") < log.index("== fills")
    with tarfile.open(tmp_path / "out2" / "results.tar.gz") as archive:
        assert {"results/first.json", "results/second.json"} <= set(archive.getnames())
    monkeypatch.setattr(call, "fingerprint", lambda: "other sources")
    _, log = run(call, monkeypatch, tmp_path, parts, out="out3")
    assert "measured once" in log


def test_passed_tests_are_recorded_and_left_out_later(bench, tmp_path, call):
    (tmp_path / "test_some.py").write_text("def test_right(): pass\n\ndef test_wrong(): assert 0\n")
    record = tmp_path / "passed"
    recorder = importlib.import_module("benchmarks.gpu.recorder")
    site = tmp_path / "site"
    site.mkdir()
    (site / "benchmarks").symlink_to(ROOT / "benchmarks")
    for expected in ("1 failed, 1 passed", "1 failed, 1 deselected"):
        recorder.remember_earlier(record)
        command = (sys.executable, "-m", "pytest", "-n", "2", "-p", "benchmarks.gpu.recorder", "-p", "no:randomly")
        environment = {"PYTHONPATH": str(site), recorder.PASSED: str(record)}
        _, said = start(
            *command, "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path, cwd=tmp_path, **environment
        )
        assert "1 failed" in said, said
        assert record.read_text() == "test_some.py::test_right\n", expected


def test_kernels_are_imported_from_the_sources_without_an_installation(bench, tmp_path):
    place = importlib.import_module("benchmarks.gpu.place")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "peer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("peer_of_ours/__init__.py", "name = 'peer'")
    assert place.place(tmp_path / "site", wheels) == ["peer-1.0-py3-none-any.whl"]
    for built in (tmp_path / "site" / "llmfast").glob("_bpe.*"):
        built.unlink()  # only the link
    source = "import llmfast.kernels, peer_of_ours, benchmarks; print(llmfast.kernels.__file__)"
    code, said = start(sys.executable, "-c", source, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert code == 0, said
    assert said.strip().startswith(str(tmp_path / "site"))


def test_the_chosen_tests_exist(bench):
    """Trap: a test that was renamed is silently no test of the call."""
    chosen = importlib.import_module("benchmarks.gpu.tests")
    assert len(set(chosen.CHOSEN)) == len(chosen.CHOSEN)
    for each in chosen.CHOSEN:
        path, _, function = each.partition("::")
        assert path in chosen.gpu_test_files()
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, each


def test_the_chosen_cases_cover_their_suites_and_leave_compiling_to_the_later_call(bench, stages):
    cases = importlib.import_module("benchmarks.gpu.cases")
    chosen = list(cases.chosen_cases())
    assert {name for name, _ in chosen} == set(stages.SUITES_OF_CASES) == {name for name, _ in cases.rehearsed_cases()}
    assert len({(name, str(case)) for name, case in chosen}) == len(chosen)
    for _, case in chosen:
        first, later = (cases.with_contenders(case, compiled) for compiled in (False, True))
        names = {contender.name for contender in first.contenders}
        assert "llmfast" in names
        assert not names & set(cases.NEED_COMPILING)
        if later is not None:
            assert {contender.name for contender in later.contenders} == {"llmfast"} | (
                {contender.name for contender in case.contenders} - names
            )


def test_every_suite_of_a_gpu_is_part_of_a_call(stages):
    """Trap: a suite that no stage runs."""
    from benchmarks.suites import SUITES

    on_gpu = {name for name, suite in SUITES.items() if "cuda" in suite.devices}
    assert {*stages.SUITES_OF_CASES, *stages.OTHER_SUITES} == on_gpu
