"""The engine: the same tokens as reading everything again each time, in any company, whatever the cache."""

import doctest
import itertools

import pytest
import torch

from llmfast.inference import engine as engine_module
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling
from llmfast.models.decoder import Decoder

SHAPE = {"vocab_size": 97, "width": 32, "layers": 2, "heads": 4, "context": 48}
CONFIGS = {
    "llama": DecoderConfig(**SHAPE, kv_heads=2, qk_norm=True),
    "gpt2": DecoderConfig(**SHAPE, positions="learned", norm="layer", activation="gelu_tanh", biases="all"),
    "sliding": DecoderConfig(**SHAPE, window=5, window_pattern="sf"),
    "windowed": DecoderConfig(**SHAPE, window=5),
    "smeared": DecoderConfig(**SHAPE, smear=True),
    "experts": DecoderConfig(**SHAPE, experts=ExpertsConfig(count=4, width=16)),
    "padded": DecoderConfig(**SHAPE, vocab_multiple=64),
}
GREEDY = Sampling(temperature=0, max_tokens=30)
PROMPTS = [[3, 1, 4], [1], list(range(40, 57)), [3, 1, 4, 1, 5], [9] * 11]


def decoder(config, seed=0):
    model = Decoder(config, generator=torch.Generator().manual_seed(seed)).eval()
    if config.smear:
        torch.nn.init.constant_(model.smear.weight, 0.3)  # at 0, where it starts, it would do nothing
    return model


@pytest.fixture(params=CONFIGS)
def model(request):
    return decoder(CONFIGS[request.param])


@pytest.fixture
def llama():
    return decoder(CONFIGS["llama"])


@torch.no_grad()
def read_again_each_time(model, prompt, count):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def tokens_of(replies):
    return [[reply.tokens for reply in samples] for samples in replies]


def test_the_example_is_true():
    assert doctest.testmod(engine_module).failed == 0


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(block_size=1, prefill_chunk=4),
        EngineConfig(block_size=7, prefill_chunk=1, prefix_sharing=False),
        EngineConfig(block_size=48, max_batch=2),
    ],
    ids=["default", "blocks of 1", "blocks of 7, read one by one", "contiguous, two at a time"],
)
def test_greedy_is_reading_everything_again_each_time(model, config):
    engine = Engine(model, config=config)
    replies = engine.generate(PROMPTS, GREEDY)
    assert tokens_of(replies) == [[read_again_each_time(model, prompt, 30)] for prompt in PROMPTS]
    assert engine.statistics().blocks_used == 0


def test_a_full_context_ends_the_reply(llama):
    ((reply,),) = Engine(llama).generate([[1] * 40], Sampling(temperature=0))
    assert len(reply.tokens) == 8
    assert reply.finish_reason == "length"


@torch.no_grad()
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.8), Sampling(top_k=9, min_p=0.05)])
def test_log_probabilities_are_those_of_the_logits(model, sampling):
    from dataclasses import replace

    engine = Engine(model, config=EngineConfig(block_size=3, prefill_chunk=5))
    ((reply,),) = engine.generate([PROMPTS[2]], replace(sampling, max_tokens=20, seed=1, logprobs=3, prompt_logprobs=0))
    whole = torch.tensor([PROMPTS[2] + reply.tokens])
    expected = model(whole)[0].log_softmax(-1)
    chosen = expected[:-1].gather(-1, whole[0, 1:, None])[:, 0]
    found = torch.tensor(reply.prompt_logprobs[1:] + reply.logprobs)
    torch.testing.assert_close(found, chosen, atol=1e-5, rtol=0)
    for place, top in enumerate(reply.top_logprobs, len(PROMPTS[2]) - 1):
        assert list(top) == expected[place].topk(3).indices.tolist()


# --- the same in any company ------------------------------------------------------------------------------------------


def invariant(**options):
    return EngineConfig(batch_invariant=True, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "sliding", "smeared"])
def test_a_request_gets_the_same_bits_in_any_company(name):
    """At batch 1, 3 and 16, in blocks of any size, with a prefix hit or not, read at once or in parts."""
    model = decoder(CONFIGS[name])
    asked = [Sampling(temperature=0, max_tokens=9), Sampling(temperature=0.9, top_p=0.9, seed=5, max_tokens=9)]
    company = Sampling(temperature=1.3, seed=7, max_tokens=6)
    found = []
    for batch, config in [
        (1, invariant(block_size=48)),
        (3, invariant(block_size=4, prefill_chunk=6)),
        (16, invariant(block_size=16)),
        (16, invariant(block_size=2, prefix_sharing=False, max_batch=5)),
    ]:
        engine = Engine(model, config=config)
        for sampling in asked:
            prompts = [PROMPTS[2]] + [[place, *range(place)] for place in range(1, batch)]
            settings = [sampling] + [company] * (batch - 1)
            ((reply,), *_) = engine.generate(prompts, settings)
            found.append((reply.tokens, reply.logprobs, reply.sampling_logprobs))
        hits = engine.statistics().prefix_hits
        assert hits > 0 or not config.prefix_sharing or config.block_size >= len(PROMPTS[2])
    for each in range(2):
        assert all(other == found[each] for other in found[each::2])


def test_samples_differ_and_each_is_what_it_is_alone(llama):
    sampling = Sampling(seed=3, max_tokens=10)
    (samples,) = Engine(llama, config=invariant(block_size=4)).generate([PROMPTS[0]], sampling, samples=4)
    assert len({tuple(reply.tokens) for reply in samples}) == 4
    (again,) = Engine(llama, config=invariant(max_batch=1)).generate([PROMPTS[0]], sampling, samples=4)
    assert [reply.tokens for reply in again] == [reply.tokens for reply in samples]
    assert [reply.logprobs for reply in again] == [reply.logprobs for reply in samples]


def test_seeds_that_are_left_out_are_drawn_and_reported(llama):
    engine = Engine(llama)
    first, second = (engine.generate([[5]], Sampling(max_tokens=12))[0][0] for _ in range(2))
    assert first.tokens != second.tokens
    again = engine.generate([[5]], Sampling(max_tokens=12, seed=first.seed))[0][0]
    assert again.tokens == first.tokens


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_samples_share_the_prompt_and_copy_on_write(llama):
    """Trap: two samples that write into the last block of a prompt they share."""
    engine = Engine(llama, config=EngineConfig(block_size=8, prefix_sharing=False))
    request = engine.submit(list(range(20)), Sampling(seed=0, max_tokens=3), samples=3)
    engine.step()
    assert engine.statistics().blocks_used == 3  # 20 tokens, once
    engine.step()
    assert engine.statistics().blocks_used == 5  # the two full ones once, and a last one each
    assert engine.statistics().prompt_tokens == 20
    while engine.has_work:
        engine.step()
    assert [reply.tokens for reply in request.completions] == [
        Engine(llama).generate([list(range(20))], Sampling(seed=0, max_tokens=3), samples=3)[0][sample].tokens
        for sample in range(3)
    ]
    assert engine.statistics().blocks_used == 0


def test_a_prompt_that_begins_alike_is_read_from_where_it_differs(llama):
    engine = Engine(llama, config=EngineConfig(block_size=4))
    prompt = list(range(18))
    engine.generate([prompt], GREEDY)
    for following, hits in (([*prompt[:16], 90, 91], 16), (prompt[:16], 12), ([90, *prompt], 0), (prompt, 16)):
        before = engine.statistics()
        ((reply,),) = engine.generate([following], Sampling(temperature=0, max_tokens=20))
        assert reply.tokens == read_again_each_time(llama, following, 20)
        assert engine.statistics().prefix_hits - before.prefix_hits == hits
        assert engine.statistics().prompt_tokens - before.prompt_tokens == len(following) - hits
    engine.weights_changed()
    before = engine.statistics().prefix_hits
    engine.generate([prompt], GREEDY)
    assert engine.statistics().prefix_hits == before


def test_a_conversation_continues_from_its_replies(llama):
    engine = Engine(llama, config=EngineConfig(block_size=4))
    ((reply,),) = engine.generate([[3, 1, 4]], Sampling(temperature=0, max_tokens=20))
    turn = [3, 1, 4, *reply.tokens, 7, 8]
    before = engine.statistics().prefix_hits
    ((answer,),) = engine.generate([turn], Sampling(temperature=0, max_tokens=5))
    assert answer.tokens == read_again_each_time(llama, turn, 5)
    assert engine.statistics().prefix_hits - before == 20


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=2, max_tokens=30)])
@pytest.mark.parametrize("sharing", [True, False])
def test_preemption_changes_no_reply(llama, sampling, sharing):
    """A sequence that gave back its blocks is read again, and goes on where it was."""
    expected = tokens_of(Engine(llama, config=invariant()).generate(PROMPTS, sampling, samples=2))
    engine = Engine(llama, config=invariant(block_size=4, cache_blocks=14, prefix_sharing=sharing))
    assert tokens_of(engine.generate(PROMPTS, sampling, samples=2)) == expected
    statistics = engine.statistics()
    assert statistics.preemptions > 0
    assert (statistics.blocks_used, statistics.running, statistics.waiting) == (0, 0, 0)


def test_blocks_that_nobody_holds_are_used_again(llama):
    engine = Engine(llama, config=EngineConfig(block_size=4, cache_blocks=12))
    for first, second in itertools.product(range(6), range(6)):
        prompt = [first, second, *range(10)]
        ((reply,),) = engine.generate([prompt], Sampling(temperature=0, max_tokens=4))
        assert reply.tokens == read_again_each_time(llama, prompt, 4)
    assert engine.statistics().blocks_used == 0


def test_a_cancelled_request_gives_back_its_blocks_at_any_moment(llama):
    engine = Engine(llama, config=EngineConfig(block_size=4, prefill_chunk=4, max_batch=3))
    for steps in range(12):
        requests = [engine.submit(prompt, GREEDY, samples=2) for prompt in PROMPTS]
        for _ in range(steps):
            engine.step()
        for request in requests:
            engine.cancel(request)
        updates = engine.step()
        assert [update.finish_reason for update in updates].count("cancelled") == sum(
            reply.finish_reason == "cancelled" for request in requests for reply in request.completions
        )
        statistics = engine.statistics()
        assert (statistics.blocks_used, statistics.running, statistics.waiting) == (0, 0, 0)
        assert not engine.has_work


def held_while_running(engine, requests):
    held = []
    while engine.has_work:
        engine.step()
        held.append(engine.statistics().blocks_used)
    return held, [[list(sequence.generated) for sequence in request.sequences] for request in requests]


@pytest.mark.parametrize("sharing", [True, False], ids=["sharing prefixes", "alone"])
def test_blocks_outside_of_every_window_are_given_back(sharing):
    model = decoder(CONFIGS["windowed"])
    engine = Engine(model, config=EngineConfig(block_size=2, prefill_chunk=6, prefix_sharing=sharing))
    for prompts in (PROMPTS, PROMPTS[::-1]):  # the second time, what is left of the first is found again
        requests = [engine.submit(prompt, GREEDY) for prompt in prompts]
        held, replies = held_while_running(engine, requests)
        assert replies == [[read_again_each_time(model, prompt, 30)] for prompt in prompts]
        # A window of 5 tokens lies in 3 or 4 blocks of 2; without windows 33 tokens alone would fill 17.
        assert max(held[-10:]) <= 4 * len(prompts)
        assert engine.statistics().blocks_used == 0
    (samples,) = engine.generate([PROMPTS[2]], GREEDY, samples=3)
    assert [reply.tokens for reply in samples] == [read_again_each_time(model, PROMPTS[2], 30)] * 3
    assert engine.statistics().blocks_used == 0


def test_a_layer_without_a_window_keeps_every_block():
    model = decoder(CONFIGS["sliding"])
    engine = Engine(model, config=EngineConfig(block_size=2))
    held, _ = held_while_running(engine, [engine.submit(PROMPTS[0], GREEDY)])
    assert max(held) == 16  # of the 33 tokens the last is not read


def test_a_stream_that_is_left_gives_back_its_blocks(llama):
    engine = Engine(llama)
    stream = engine.stream([1, 2], GREEDY)
    next(stream)
    assert engine.statistics().blocks_used == 1
    stream.close()
    assert engine.statistics().blocks_used == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_cache_of_fewer_bits_is_close_and_independent_of_the_company(llama, dtype):
    def replies(**options):
        engine = Engine(llama, config=EngineConfig(cache_dtype=dtype, **options))
        return engine.generate(PROMPTS, Sampling(seed=1, max_tokens=20))

    found = replies(batch_invariant=True, block_size=4)
    again = replies(batch_invariant=True, block_size=48, prefill_chunk=3, max_batch=2)
    assert [reply.logprobs for (reply,) in found] == [reply.logprobs for (reply,) in again]
    for prompt, (reply,) in zip(PROMPTS, found, strict=True):
        whole = torch.tensor([prompt + reply.tokens])
        with torch.no_grad():
            exact = llama(whole)[0, len(prompt) - 1 : -1].log_softmax(-1)
        exact = exact.gather(-1, whole[0, len(prompt) :, None])[:, 0]
        error = (torch.tensor(reply.logprobs) - exact).abs().max()
        assert 0 < error < 0.05


def test_dynamic_scaling_reads_a_prompt_by_its_length_and_what_follows_by_the_length_so_far():
    """As transformers does. Prefixes are not shared: keys depend on the length of the prompt."""
    config = DecoderConfig(**SHAPE, rope_scaling=RopeScaling("dynamic", 4.0, 12))
    model = decoder(config)
    engine = Engine(model, config=EngineConfig(block_size=4, prefill_chunk=7))
    prompt = list(range(20))
    first = read_again_each_time(model, prompt, 1)
    for _ in range(2):
        ((reply,),) = engine.generate([prompt], Sampling(temperature=0, max_tokens=10))
        assert reply.tokens[:1] == first
    assert engine.statistics().prefix_hits == 0
    whole = Engine(model).generate([prompt], Sampling(temperature=0, max_tokens=10))
    assert whole[0][0].tokens == reply.tokens


def test_paged_attention_of_the_kernels_is_that_of_the_plain_path(llama):
    """What a GPU computes, in Triton's interpreter: ``flash_decode`` with page tables."""
    from llmfast.kernels import backend

    sampling = Sampling(temperature=0, max_tokens=6)
    expected = Engine(llama).generate(PROMPTS[:3], sampling)
    with backend("triton"):
        engine = Engine(llama, config=EngineConfig(block_size=16, prefill_chunk=10))
        found = engine.generate(PROMPTS[:3], sampling)
    assert tokens_of(found) == tokens_of(expected)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt has 0 tokens; the model takes 1 to 47"),
        ([1] * 48, {}, "the prompt has 48 tokens; the model takes 1 to 47"),
        ([1, 97], {}, "prompt has the token 97; the model has tokens from 0 to 96"),
        ([-1], {}, "prompt has the token -1"),
        ("text", {}, "prompt is a text, and the engine has no tokenizer"),
        ([1], {"samples": 0}, "samples must be at least 1, got 0"),
        ([1], {"adapter": "french"}, "the model has no adapters, but the request names 'french'"),
        ([1], {"sampling": Sampling(stop=["x"])}, "stop needs a tokenizer"),
        ([1], {"sampling": Sampling(stop_tokens=[100])}, "stop_tokens has the token 100"),
        ([1], {"sampling": Sampling(logit_bias={100: 1.0})}, "logit_bias has the token 100"),
    ],
)
def test_a_request_that_cannot_be_is_refused_and_changes_nothing(llama, prompt, options, message):
    engine = Engine(llama)
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt, **options)
    assert not engine.has_work
    assert engine.generate([[1]], Sampling(temperature=0, max_tokens=1))


def test_a_prompt_that_is_too_long_is_cut_on_the_left_by_choice(llama):
    sampling = Sampling(temperature=0, max_tokens=8, truncate_prompt=True)
    long = [place % 90 for place in range(100)]
    ((reply,),) = Engine(llama).generate([long], sampling)
    assert reply.prompt_tokens == long[-40:]
    assert len(reply.tokens) == 8


def test_a_prompt_that_the_cache_cannot_hold_is_refused(llama):
    engine = Engine(llama, config=EngineConfig(block_size=4, cache_blocks=3))
    with pytest.raises(ValueError, match=r"the cache \(cache_blocks\) holds 12 tokens"):
        engine.submit([1] * 12)
    ((reply,),) = engine.generate([[1] * 8], GREEDY)
    assert (len(reply.tokens), reply.finish_reason) == (4, "length")


def test_logits_that_are_no_numbers_are_refused(llama):
    with torch.no_grad():
        llama.norm.weight.fill_(torch.nan)
    engine = Engine(llama)
    with pytest.raises(ValueError, match="the model's logits hold NaN or infinity"):
        engine.generate([[1]], GREEDY)
    assert engine.statistics().blocks_used == 0
