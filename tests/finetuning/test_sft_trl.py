"""The same training by trl, where it is installed: equal losses on the same tokens, batches and weights."""

import pytest
import torch
from small_sft import new_sft_run, sft_trainer

from llmfast.data.batch import IGNORED
from llmfast.integrations.huggingface import save_huggingface

STEPS = 12


@pytest.mark.proof
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_losses_are_those_of_trl(tmp_path, accumulate):
    """In the same order, without packing; both with AdamW, clipping and a constant learning rate."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    transformers = pytest.importorskip("transformers")
    datasets = pytest.importorskip("datasets")
    settings = {
        "steps": STEPS,
        "batch_size": 4,
        "accumulate": accumulate,
        "learning_rate": 3e-3,
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "beta2": 0.999,
    }
    session = new_sft_run(tmp_path, data={"packing": "none", "template": "chatml"}, **settings)
    task = session.task
    start = tmp_path / "hf"
    (tmp_path / "assets").mkdir()
    task.save_assets(tmp_path / "assets")
    save_huggingface(session.trainer.model, start, tokenizer_from=tmp_path / "assets")

    ours = sft_trainer(session)
    beginning = ours.source.state()
    rows = [row for _ in range(STEPS) for row in examples(ours.source.next(4))]
    ours.source.restore(beginning)
    losses = [float(ours.step().loss) for _ in range(STEPS)]

    config = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=4 // accumulate,
        gradient_accumulation_steps=accumulate,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        max_grad_norm=1.0,
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        max_length=None,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    theirs = trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(start),
    )
    theirs.train()
    logged = [record["loss"] for record in theirs.state.log_history if "loss" in record]
    assert logged == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0]


def examples(batch):
    """The rows of a batch as trl takes them: whole examples, and labels that are not shifted."""
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        stop = int((targets != IGNORED).nonzero()[-1]) + 1
        ids = [*tokens[:stop].tolist(), int(targets[stop - 1])]
        yield {"input_ids": ids, "labels": [IGNORED, *targets[:stop].tolist()]}
