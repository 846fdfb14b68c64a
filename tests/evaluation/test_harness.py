"""lm-evaluation-harness: its figures of a model of ours are those of its own class for Hugging Face models."""

import json

import pytest
import yaml
from shared_data import shared_data
from small_sft import small_tokenizer

from llmfast.commands.evaluate import evaluate
from llmfast.commands.huggingface import export_model
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import save_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'llmfast[eval]'")

ASKED = 30
# Tasks on local files; what they make of a row is what ours make of it.
CHOICES = {"output_type": "multiple_choice", "doc_to_target": "gold", "doc_to_choice": "{{choices}}"}
TASKS = {
    "piqa": CHOICES | {"doc_to_text": "{{query.rstrip()}}\nAnswer:"},
    "arc_easy": CHOICES | {"doc_to_text": "{{query.rstrip()}}\nAnswer:"},
    "copa": CHOICES | {"doc_to_text": "{{query}}"},
}
MEAN = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
TEXT = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}
WRITING = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["Question:", "e"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module", params=["begins with nothing", "begins with a token"])
def models(tmp_path_factory, request):
    """A checkpoint with random weights, and the same exported; with each kind of tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = small_tokenizer()
    config = DecoderConfig(vocab_size=tokenizer.n_vocab, width=32, layers=2, heads=2, kv_heads=1, context=416)
    save_model(folder / "ours", Decoder(config), write_tokenizer=tokenizer.save)
    if request.param == "begins with a token":
        file = folder / "ours" / "tokenizer.json"
        content = json.loads(file.read_text())
        token = "<|endoftext|>"
        special = {"SpecialToken": {"id": token, "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [tokenizer.eot_token], "tokens": [token]}},
        }
        file.write_text(json.dumps(content))
    export_model(folder / "ours", folder / "exported")
    return folder, request.param == "begins with a token"


def harness_results(model, arguments, folder, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from llmfast.evaluation import harness  # noqa: F401

    written = folder / "tasks"
    written.mkdir(exist_ok=True)
    for name, (task, file) in tasks.items():
        dataset = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
        (written / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "metric_list": MEAN} | dataset | task))
    manager = TaskManager(include_path=str(written), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=list(tasks), task_manager=manager, limit=ASKED, bootstrap_iters=0,
        batch_size=8, device="cpu", log_samples=True,
    )  # fmt: skip


def test_every_figure_is_that_of_the_class_for_hugging_face_models(models, tmp_path, monkeypatch):
    """Trap: another beginning of a text, another cut of a long one, or a stop text left in a reply."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder, begins = models
    tasks = {name: (task, shared_data(f"multiple_choice/{name}.jsonl")) for name, task in TASKS.items()}
    gsm8k = shared_data("reasoning/gsm8k_test.jsonl")
    tasks |= {"perplexity": (TEXT, gsm8k), "writing": (WRITING, gsm8k)}
    ours = harness_results("llmfast", {"pretrained": str(folder / "ours")}, tmp_path, tasks)
    theirs = harness_results("hf", {"pretrained": str(folder / "exported"), "dtype": "float32"}, tmp_path, tasks)
    for name in TASKS:
        for metric in ("acc,none", "acc_norm,none", "acc_stderr,none"):
            assert ours["results"][name][metric] == theirs["results"][name][metric], (name, metric)
    for name, value in theirs["results"]["perplexity"].items():
        if isinstance(value, float):
            assert ours["results"]["perplexity"][name] == pytest.approx(value, rel=1e-5), name
    replies = [[each["resps"] for each in found["samples"]["writing"]] for found in (ours, theirs)]
    assert replies[0] == replies[1]
    assert len({str(each) for each in replies[0]}) > 1
    if begins:  # our own tasks begin a text as the tokenizer says, or else with its end-of-text token
        for name, (_, file) in list(tasks.items())[: len(TASKS)]:
            options = {
                "tasks": (name,),
                "data": (file,),
                "limit": ASKED,
                "truncate": True,
                "out": tmp_path / "out.json",
            }
            figures = evaluate(folder / "ours", device="cpu", **options)["results"][name]["figures"]
            assert figures["acc"]["value"] == theirs["results"][name]["acc,none"]
            assert figures["acc_char"]["value"] == theirs["results"][name]["acc_norm,none"]
