"""Generation: the same with the cache as without, within the context and beyond it, streamed as whole characters."""

import pytest
import torch

from llmfast.inference.config import Sampling
from llmfast.inference.generate import generate_tokens, stream_text
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model():
    config = DecoderConfig(vocab_size=60, width=32, layers=2, heads=4, kv_heads=2, context=16)
    return Decoder(config, generator=torch.Generator().manual_seed(0)).eval()


def test_greedy_equals_reading_everything_anew_each_time(model):
    tokens = [3, 1, 4]
    for _ in range(13):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert list(generate_tokens(model, [3, 1, 4], 13, sampling=GREEDY)) == tokens[3:]


def test_past_the_context_it_goes_on_from_the_last_half(model):
    tokens = list(generate_tokens(model, [3, 1, 4], 40, sampling=GREEDY))
    assert len(tokens) == 40
    # The first token after the context filled up is predicted from the 8 tokens before it, read anew.
    seen = [3, 1, 4, *tokens]
    assert seen[17] == int(model(torch.tensor([seen[9:17]]))[0, -1].argmax())


def test_a_seed_decides(model):
    def run(seed):
        return list(generate_tokens(model, [1], 12, seed=seed))

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_it_ends_after_the_stop_token(model):
    tokens = list(generate_tokens(model, [5], 50, sampling=Sampling(1.5), seed=2))
    stop = tokens[4]
    assert (
        list(generate_tokens(model, [5], 50, sampling=Sampling(1.5), seed=2, stop=stop))
        == (tokens[: tokens.index(stop) + 1])
    )


@pytest.mark.parametrize("prompt", [[], [1] * 17])
def test_a_prompt_that_does_not_fit_is_refused(model, prompt):
    with pytest.raises(ValueError, match=f"the prompt has {len(prompt)} tokens; the model takes 1 to 16"):
        next(generate_tokens(model, prompt, 1))


def test_text_streams_in_whole_characters():
    tokenizer = Tokenizer.train(["plain text to learn from, nothing else"] * 3, 260)
    text = "naïve 雪 🦊 text"
    parts = list(stream_text(tokenizer, tokenizer.encode_ordinary(text)))
    assert "".join(parts) == text
    assert all("�" not in part for part in parts)
    cut = tokenizer.encode_ordinary("雪")[:-1]
    assert "".join(stream_text(tokenizer, cut)) == "�"
