"""HellaSwag: endings scored after their context, the same by one process or by several."""

import pytest
import torch

from llmfast.data.shards import Share
from llmfast.evaluation import likelihood
from llmfast.evaluation.hellaswag import hellaswag
from llmfast.evaluation.tasks import questions
from llmfast.evaluation.tasks import rows as rows_module
from llmfast.evaluation.tasks.rows import Row
from llmfast.evaluation.team import Team
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer

ROW = {
    "activity_label": "Baking",
    "ctx_a": "A woman [substeps] stands in a kitchen.",
    "ctx_b": "she",
    "endings": ["bakes a cake.", "flies away [title] on a broom.", "is", "swims."],
    "label": "0",
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["A woman bakes a cake and swims in a kitchen. "] * 5, 270)


def small_model(context):
    config = DecoderConfig(vocab_size=270, width=16, layers=1, heads=2, context=context)
    return Decoder(config, generator=torch.Generator().manual_seed(0)).eval()


def rows():
    """Eleven questions whose right ending is each in turn."""
    return [ROW | {"ctx_b": f"she {number}", "label": str(number % 4)} for number in range(11)]


def chosen(model, tokenizer, row, by_length):
    """The definition, an ending at a time and a token at a time."""
    example = questions.hellaswag(Row(row, "row"))
    scores = []
    for ending in example.answers:
        before, after = [tokenizer.eot_token, *tokenizer.encode(example.prompts[0])], tokenizer.encode(" " + ending)
        nats = 0.0
        for place, token in enumerate(after):
            seen = (before + after[:place])[-model.config.context :]
            nats -= model(torch.tensor([seen]))[0, -1].log_softmax(-1)[token].item()
        scores.append(nats / (len(ending) if by_length else 1))
    return scores.index(min(scores))


def test_texts_are_put_together_as_the_harness_does():
    example = questions.hellaswag(Row(ROW, "row"))
    assert example.prompts[0] == "Baking: A woman stands in a kitchen. She"
    assert example.answers[1] == "flies away. on a broom."
    assert example.label == 0


def test_the_likeliest_ending_is_chosen(tokenizer):
    model = small_model(256)
    found = hellaswag(model, tokenizer, rows=rows())
    for name, by_length in (("hellaswag", False), ("hellaswag_norm", True)):
        right = [chosen(model, tokenizer, row, by_length) == int(row["label"]) for row in rows()]
        assert found[name] == sum(right) / len(right)
    assert found["hellaswag"] != hellaswag(model, tokenizer, rows=rows(), limit=1)["hellaswag"]


def test_what_is_longer_than_the_context_is_cut_at_its_start(tokenizer):
    """Trap: the ending cut off in place of the context."""
    model = small_model(28)  # the longest ending fits, no question does
    found = hellaswag(model, tokenizer, rows=rows())
    right = [chosen(model, tokenizer, row, False) == int(row["label"]) for row in rows()]
    assert found["hellaswag"] == sum(right) / len(right)


def test_an_ending_that_the_context_cannot_hold_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"rows, row 1: an answer has \d+ tokens, more than the model's context 8"):
        hellaswag(small_model(8), tokenizer, rows=rows())


def test_two_processes_share_the_batches_and_agree(tokenizer, monkeypatch):
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 300)
    model = small_model(256)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    alone = hellaswag(model, tokenizer, rows=rows())
    batches = len(calls)
    tables = []
    for index in range(2):
        team = Team(Share(index, 2), lambda t: tables.append(t) or t)
        hellaswag(model, tokenizer, rows=rows(), team=team)
    assert len(calls) - batches == batches + batches % 2  # an odd one is measured twice: both call equally often
    both = sum(tables)
    assert hellaswag(model, tokenizer, rows=rows(), team=Team(Share(0, 2), lambda _: both)) == alone


def test_the_dataset_is_that_of_the_hub(tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(
        rows_module.datasets_hub, "load_split", lambda hub, split, *, source: asked.append((hub.path, split)) or rows()
    )
    hellaswag(small_model(256), tokenizer)
    assert asked == [("Rowan/hellaswag", "validation")]
    with pytest.raises(ValueError, match="no questions"):
        hellaswag(small_model(256), tokenizer, rows=[])
