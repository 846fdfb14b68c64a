"""A small run whose loss curve is committed: a change that moves it must say so.

All but rounding is exact: the same text, vocabulary, order of the data and initial weights on every machine. Sums of
float32 products are not, since matrix libraries add in an order that depends on the processor's vector width: with this
run's processor told to use SSE4.2 or AVX2 in place of AVX-512, losses moved by at most 2e-7 of their value and gradient
norms by 5e-7. A change of what is computed, as another epsilon or one row of data, moves the curve by far more. The
initial weights are those that torch draws from 2.12 on; 2.11 draws truncated normals otherwise.

To record a curve that was meant to move: ``LLMFAST_WRITE_GOLDEN=1 pytest -n 0 tests/training/test_golden_curve.py``,
and commit the file with the reason.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from small_run import small_config, write_corpus

from llmfast.training.session import new_session

pytestmark = pytest.mark.numeric

FILE = Path(__file__).with_name("golden_curve.json")
STEPS = 40
TOLERANCE = 3e-6
DRAWN = [1.541, -0.293429]  # by torch 2.12 and later from the seed 0


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder):
    config = small_config(
        write_corpus(folder / "corpus"),
        steps=STEPS,
        batch_size=8,
        accumulate=2,
        optimizer="adamw",
        learning_rate=3e-3,
        clip_norm=0.5,
        warmup=0.1,
        schedule="wsd",
    )
    session = new_session(folder / "run", config, report=lambda line: None)
    trainer, prepared = session.trainer, session.task.prepared
    steps = [trainer.step() for _ in range(STEPS)]
    validation = trainer.evaluate()
    return {
        "data": [prepared.train.checksum, prepared.validation.checksum],
        "parameters": trainer.task.config.model.parameters,
        "losses": [step.loss.item() for step in steps],
        "gradient_norms": [step.gradient_norm.item() for step in steps],
        "validation_loss": validation["loss"],
    }


def test_the_curve_is_the_committed_one(tmp_path, one_thread):
    drawn = torch.nn.init.trunc_normal_(torch.empty(2), generator=torch.Generator().manual_seed(0))
    if drawn.tolist() != pytest.approx(DRAWN, rel=1e-4):
        pytest.skip(f"torch {torch.__version__} draws other weights from a seed, as 2.11 does")
    found = run(tmp_path)
    if os.environ.get("LLMFAST_WRITE_GOLDEN"):
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(FILE.read_text())
    assert found["data"] == golden["data"]
    assert found["parameters"] == golden["parameters"]
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    for name in ("losses", "gradient_norms", "validation_loss"):
        assert found[name] == pytest.approx(golden[name], rel=TOLERANCE), name
