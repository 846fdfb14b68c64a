"""Log-likelihoods in batches are those of one pair at a time, one token at a time."""

import pytest
import torch
from small_sft import small_tokenizer

from llmfast.data.shards import Share
from llmfast.evaluation import likelihood
from llmfast.evaluation.likelihood import Pair, encode_pair, log_likelihoods, windows
from llmfast.evaluation.team import Team
from llmfast.models.config import DecoderConfig, RopeScaling
from llmfast.models.decoder import Decoder


def small_model(**settings):
    config = DecoderConfig(**{"vocab_size": 50, "width": 16, "layers": 1, "heads": 2, "context": 8} | settings)
    return Decoder(config, generator=torch.Generator().manual_seed(0))


def definition(model, pair):
    """A token at a time, from what the model can see of all before it."""
    tokens = [*pair.context, *pair.continuation]
    total, greedy = 0.0, True
    for place in range(len(pair.context), len(tokens)):
        first = max(0, len(tokens) - 1 - model.config.context)
        logits = model(torch.tensor([tokens[first:place]]))[0, -1]
        total += logits.log_softmax(-1)[tokens[place]].item()
        greedy &= logits.argmax().item() == tokens[place]
    return total, greedy


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
@pytest.mark.parametrize("share", [False, True])
def test_batches_do_not_change_results(monkeypatch, batch_tokens, share):
    """Trap: results in the order of the lengths."""
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", batch_tokens)
    model = small_model(dropout=0.5)  # which must be off
    draw = torch.Generator().manual_seed(1)
    pairs = []
    for before, after in [(1, 1), (5, 3), (1, 8), (12, 2), (7, 1), (2, 2), (30, 8)]:
        tokens = torch.randint(50, (before + after,), generator=draw).tolist()
        pairs.append(Pair(tokens[:before], tokens[before:]))
    likeliest = model.eval()(torch.tensor([[3, 4]]))[0, -1].argmax().item()
    pairs.append(Pair([3, 4], [likeliest]))
    wanted = [definition(model, pair) for pair in pairs]
    found = log_likelihoods(model.train(), pairs, truncate=True, share=share)
    assert [each.log_prob for each in found] == pytest.approx([total for total, _ in wanted], rel=1e-5)
    assert [each.is_greedy for each in found] == [greedy for _, greedy in wanted]
    assert found[-1].is_greedy
    assert model.training


def test_what_does_not_fit_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match=r"have 10 tokens \(pair 1\), more than the model's context 8"):
        log_likelihoods(model, [Pair([1], [2]), Pair([1] * 8, [2, 3])])
    with pytest.raises(ValueError, match=r"continuation of 9 tokens \(pair 0\)"):
        log_likelihoods(model, [Pair([1], [2] * 9)], truncate=True)
    with pytest.raises(ValueError, match="pair 0 has an empty continuation"):
        log_likelihoods(model, [Pair([1], [])])
    assert log_likelihoods(model, []) == []


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 9, 30])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_windows_score_every_token_once(count, stride):
    tokens = list(range(count))
    found = list(windows(tokens, 4, stride))
    assert [token for pair in found for token in pair.continuation] == tokens[1:]
    for number, pair in enumerate(found):
        assert [*pair.context, *pair.continuation] == tokens[pair.context[0] : pair.continuation[-1] + 1]
        assert pair.context
        assert len(pair.context) + len(pair.continuation) - 1 <= 4
        assert number == 0 or len(pair.context) >= 4 - stride + 1


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    """Trap: a lone space token, which no text has before a word."""
    tokenizer = small_tokenizer()
    assert encode_pair(tokenizer, "red fox ", "river") == encode_pair(tokenizer, "red fox", " river")
    assert encode_pair(tokenizer, "", "river").context == [tokenizer.eot_token]
    pair = encode_pair(tokenizer, "red", " fox")
    assert tokenizer.decode([*pair.context, *pair.continuation]) == "<|endoftext|>red fox"
    with pytest.raises(ValueError, match="no tokens of its own"):
        encode_pair(tokenizer, "red", "")


SETTINGS = [
    {},
    {"positions": "learned"},
    {"smear": True},
    {"window": 5, "kv_heads": 1},
    {"rope_scaling": RopeScaling(kind="dynamic", factor=2.0, original_context=16)},
]


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings), "plain"))
@pytest.mark.parametrize("batch_tokens", [40, 8192])
@pytest.mark.parametrize("share", [False, True])
def test_neither_shared_beginnings_nor_others_change_a_result(monkeypatch, settings, batch_tokens, share):
    """Trap: answers that share a page of the cache, one that another begins with, and one that is there twice;
    and frequencies that depend on the length of a row, which padding stretches."""
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", batch_tokens)
    model = small_model(**{"context": 64} | settings)
    draw = torch.Generator().manual_seed(2)

    def drawn(count):
        return torch.randint(50, (count,), generator=draw).tolist()

    pairs = []
    for length in (3, 9, 16, 19, 33):
        context, alike = drawn(length), drawn(12)
        answers = [drawn(4), drawn(7), [*alike, *drawn(3)], [*alike, *drawn(5)], alike, alike, drawn(1)]
        pairs += [Pair(context, answer) for answer in answers]
    pairs.append(Pair(pairs[-1].context[:10], drawn(3)))
    found = log_likelihoods(model, pairs, share=share)
    wanted = [each for pair in pairs for each in log_likelihoods(model, [pair])]
    assert [each.log_prob for each in found] == pytest.approx([each.log_prob for each in wanted], rel=1e-5)
    assert [each.is_greedy for each in found] == [each.is_greedy for each in wanted]


def test_what_answers_share_is_read_once():
    model = small_model(context=64)
    read, scored = [], []
    model.embedding.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    model.head.register_forward_hook(lambda module, inputs, output: scored.append(len(inputs[0])))
    context = list(range(20))
    answers = [[40, 1, 2], [41, 3], [42] * 8 + [5], [42] * 8 + [6]]
    log_likelihoods(model, [Pair(context, answer) for answer in answers], share=True)
    assert sum(read) == 20 + 2 + 1 + 8  # the last token of an answer is only predicted
    assert sum(scored) == 1 + 2 + 1 + 8  # the end of the context predicts the first token of every answer
    with pytest.raises(ValueError, match="share must be False for 2 processes"):
        log_likelihoods(model, [Pair([1], [2])], share=True, team=Team(Share(0, 2)))
