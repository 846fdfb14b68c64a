"""The decoder in C++ beside the one in PyTorch."""

import copy
import itertools
import os
import signal
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmfast import _decoder
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
from llmfast.inference.native import NativeRunner
from llmfast.inference.runner import Chunk
from llmfast.inference.torch_runner import TorchRunner
from llmfast.models.adapters.config import LoraConfig
from llmfast.models.adapters.inject import add_adapter
from llmfast.models.adapters.lora import dense
from llmfast.models.config import DecoderConfig, ExpertsConfig, RopeScaling
from llmfast.models.decoder import Decoder
from llmfast.models.quantize import quantize_decoder

WIDTHS = ["float32", "bfloat16", "int8", "int4"]
INTEGERS = ["int8", "int4"]
GPT2 = {"positions": "learned", "norm": "layer", "biases": "all", "activation": "gelu_tanh"}
SHAPES = {
    "GPT-2": GPT2,
    "GPT-2 with erf, smeared": GPT2 | {"activation": "gelu", "smear": True, "scale_embedding": True},
    "Llama": {"kv_heads": 2, "tie_embeddings": False},
    "Llama 3, filled table": {
        "rope_scaling": RopeScaling("llama3", 4.0, low_frequency_factor=1.0),
        "vocab_multiple": 64,
    },
    "Qwen": {"kv_heads": 1, "biases": "qkv", "qk_norm": True, "norm_eps": 1e-5},
    "sliding windows": {"window": 9, "window_pattern": "sf"},
    "scales": {
        "embedding_scale": 3.0,
        "residual_scale": 0.4,
        "logit_scale": 0.3,
        "attention_scale": 0.1,
        "rope_interleaved": True,
        "norm_weight_offset": 1.0,
        "biases": "all",
    },
    "GPT-2, scaled": GPT2 | {"residual_scale": 0.4, "logit_scale": 0.3, "norm_eps": 1e-3},
    "scales, qk_norm": {"attention_scale": 0.1, "rope_interleaved": True, "norm_weight_offset": 1.0, "qk_norm": True},
    "odd widths": {"width": 40, "heads": 2, "head_width": 24, "ff_width": 50, "activation": "geglu"},
    "geglu_tanh, yarn": {"activation": "geglu_tanh", "rope_scaling": RopeScaling("yarn", 2.0)},
}
TOKENS = 100
BLOCK = 16


def decoder(shape: str = "Llama", seed: int = 0, **changes) -> Decoder:
    """A decoder whose norms, biases and smear are not the trivial ones they start with."""
    sizes = {"vocab_size": 301, "width": 64, "layers": 2, "heads": 4, "context": 128}
    model = Decoder(DecoderConfig(**(sizes | SHAPES[shape] | changes)), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def some_tokens(count: int = TOKENS, seed: int = 0) -> list[int]:
    return torch.randint(301, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def runner_of(model: Decoder, weights: str = "float32", *, cache_dtype: str = "float32", **options) -> NativeRunner:
    runner = NativeRunner(model, weights, **options)
    runner.allocate(24, BLOCK, cache_dtype)
    return runner


def chunk(tokens: list[int], past: int, end: int, first_block: int = 0) -> Chunk:
    blocks = list(range(first_block, first_block - (-end // BLOCK)))
    return Chunk(tokens[past:end], past, blocks, end - past, tokens[past - 1] if past else None)


def logits_of(runner: NativeRunner, tokens: list[int], cuts: Sequence[int] = ()) -> Tensor:
    """Logits of all tokens, read in chunks that are cut at ``cuts``."""
    borders = [0, *cuts, len(tokens)]
    parts = [runner.forward([chunk(tokens, a, b)]) for a, b in itertools.pairwise(borders)]
    return torch.cat(parts)


def in_float64(model: Decoder) -> Decoder:
    exact = copy.deepcopy(model).double()
    exact.renew_buffers()
    return exact


@torch.no_grad()
def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def with_kept_weights(model: Decoder, weights: str) -> Decoder:
    """The decoder with the weights that the runner multiplies by."""
    kept = copy.deepcopy(model)
    linears = [layer for layer in kept.modules() if isinstance(layer, (nn.Linear, nn.Embedding))]
    for layer in linears:
        if layer is kept.positions or (layer is kept.head and model.config.tie_embeddings):
            continue
        is_table = layer is kept.embedding or layer is kept.head
        form = "int8" if is_table and weights == "int4" else weights
        layer.weight.data = torch.from_numpy(_decoder.Matrix(layer.weight.detach().numpy(), form).unpacked())
    if model.config.tie_embeddings:
        kept.head.weight = kept.embedding.weight
    return kept


def round_inputs(model: Decoder) -> Decoder:
    """Rounds what enters linear layers to 8 bits, each 32 numbers with a scale, as products of integers need it."""

    def round_input(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (x,) = inputs
        groups = nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return ((groups / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(round_input)
    return model


@pytest.mark.numeric
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@torch.no_grad()
def test_floating_point_weights_are_as_exact_as_pytorch(shape, weights):
    """Against float64 with the same rounded weights; what the decoder adds to the error is that of float32."""
    model = with_kept_weights(decoder(shape), weights)
    tokens = some_tokens()
    exact = in_float64(model)(torch.tensor([tokens]))[0]
    allowed = 2 * error(model(torch.tensor([tokens]))[0], exact) + torch.finfo(torch.float32).eps
    assert error(logits_of(runner_of(model, weights), tokens), exact) <= allowed


@pytest.mark.numeric
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", INTEGERS)
@torch.no_grad()
def test_integer_weights_add_the_rounding_of_activations_only(shape, weights):
    tokens = some_tokens()
    model = decoder(shape)
    kept = in_float64(with_kept_weights(model, weights))
    exact = kept(torch.tensor([tokens]))[0]
    allowed = 2 * error(round_inputs(kept)(torch.tensor([tokens]))[0], exact)
    assert 0 < error(logits_of(runner_of(model, weights), tokens), exact) <= allowed


@torch.no_grad()
def test_a_cache_in_bfloat16_adds_its_rounding_only():
    tokens, model = some_tokens(), decoder("Qwen")
    exact = logits_of(runner_of(model), tokens)
    # A number of 8 bits is off by at most 2^-9; attention averages over them, and two layers add up.
    assert 0 < error(logits_of(runner_of(model, cache_dtype="bfloat16"), tokens), exact.double()) <= 2 * 2**-8


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", WIDTHS)
@pytest.mark.parametrize("shape", ["GPT-2 with erf, smeared", "Qwen", "sliding windows", "odd widths"])
def test_bits_do_not_depend_on_instructions_threads_or_chunks(shape, weights, cache_dtype):
    """A sum whose order depends on the vector width, the number of rows at once or the cut would differ in a bit."""
    model, tokens = decoder(shape), some_tokens()
    runners = [
        runner_of(model, weights, cache_dtype=cache_dtype, threads=threads, instructions=instructions)
        for instructions in _decoder.instruction_sets()
        for threads in (1, 3)
    ]
    expected = logits_of(runners[0], tokens)
    for runner in runners[1:]:
        assert torch.equal(logits_of(runner, tokens), expected)
    for cuts in (range(1, TOKENS), (1, 2, 5, 25, 32, 65), (16, 17, 99)):
        assert torch.equal(logits_of(runners[0], tokens, cuts), expected)


@pytest.mark.parametrize("weights", WIDTHS)
def test_bits_do_not_depend_on_the_batch(weights):
    model = decoder("Qwen")
    runner = runner_of(model, weights, threads=2)
    sequences = [some_tokens(3 + seed, seed) for seed in range(16)]
    alone = [logits_of(runner, tokens) for tokens in sequences]
    for size in (3, 16):
        together = [chunk(tokens, 0, len(tokens), 2 * row) for row, tokens in enumerate(sequences[:size])]
        runner.allocate(40, BLOCK, "float32")
        assert torch.equal(runner.forward(together), torch.cat(alone[:size]))
        more = [
            chunk([*tokens, 7], len(tokens), len(tokens) + 1, 2 * row) for row, tokens in enumerate(sequences[:size])
        ]
        next_together = runner.forward(more)
        for row, tokens in enumerate(sequences[:size]):
            assert torch.equal(next_together[row], logits_of(runner, [*tokens, 7])[-1])


def test_a_long_batch_goes_through_in_passes():
    """More tokens than a pass takes, with a sequence across the border of two."""
    model = decoder("Llama", context=400)
    runner = runner_of(model, threads=2)
    runner.allocate(60, BLOCK, "float32")
    first, second = some_tokens(200), some_tokens(390, 1)
    found = runner.forward([chunk(first, 0, 200), chunk(second, 0, 390, 20)])
    assert torch.equal(found, torch.cat([logits_of(runner, first), logits_of(runner, second, (7, 300))]))


def test_only_the_wanted_logits_are_given():
    model, tokens = decoder(), some_tokens(40)
    runner = runner_of(model)
    expected = logits_of(runner, tokens)
    for outputs in (0, 1, 5):
        wanted = Chunk(tokens, 0, [0, 1, 2], outputs)
        assert torch.equal(runner.forward([wanted]), expected[40 - outputs :])


def test_blocks_may_lie_anywhere_and_be_copied():
    model, tokens = decoder("sliding windows"), some_tokens(40)
    runner = runner_of(model)
    expected = logits_of(runner, tokens)
    runner.forward([Chunk(tokens[:39], 0, [17, 3, 11], 0)])
    runner.copy_blocks([(17, 0), (3, 23), (11, 5)])
    assert torch.equal(runner.forward([Chunk(tokens[39:], 39, [0, 23, 5], 1, tokens[38])]), expected[39:])


def test_blocks_outside_of_every_window_are_given_back():
    model, prompt = decoder("sliding windows", window_pattern="s"), some_tokens(70)
    replies, held = [], []
    for runner in (TorchRunner(model), runner_of(model)):
        engine = Engine(runner=runner, config=EngineConfig(block_size=BLOCK, prefill_chunk=20))
        request = engine.submit(prompt, Sampling(temperature=0, max_tokens=40))
        while engine.has_work:
            engine.step()
            held.append(engine.statistics().blocks_used)
        replies.append(list(request.sequences[0].generated))
    assert replies[0] == replies[1]
    assert held[-2] <= 2


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 32), (33, 50), (50, 95)])
def test_packed_weights(rows, columns):
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    weights[rows // 2] = 0

    def kept(form: str) -> Tensor:
        return torch.from_numpy(_decoder.Matrix(weights.numpy(), form, 2).unpacked())

    assert torch.equal(kept("float32"), weights)
    assert torch.equal(kept("bfloat16"), weights.bfloat16().float())
    step = weights.abs().amax(1, keepdim=True) / 127
    assert ((kept("int8") - weights).abs() <= step * (0.5 + 1e-4)).all()
    # The scale of least error is no worse than that of the largest weight, however it is rounded to bfloat16.
    groups = nn.functional.pad(weights, (0, -columns % 32)).unflatten(1, (-1, 32))
    step = groups.abs().amax(-1, keepdim=True) / 7
    plain = (groups / step.clamp(min=1e-30)).round() * step
    found = nn.functional.pad(kept("int4"), (0, -columns % 32)).unflatten(1, (-1, 32))
    assert ((found - groups).norm(dim=-1) <= (plain - groups).norm(dim=-1) + groups.norm(dim=-1) * 2**-8).all()
    assert (kept("int4")[rows // 2] == 0).all()


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", WIDTHS)
@pytest.mark.parametrize("place", ["weight", "activation"])
def test_what_is_not_finite_stays_visible(weights, odd, place):
    """A model that has diverged must not give numbers that look sound because integers have no NaN."""
    model = decoder()
    with torch.no_grad():
        if place == "weight":
            model.blocks[0].feed_forward.down.weight[3, 5] = odd
        else:
            model.blocks[0].attention_norm.weight[7] = odd
    for instructions in _decoder.instruction_sets():
        assert not logits_of(runner_of(model, weights, instructions=instructions), some_tokens(5)).isfinite().any()


@pytest.mark.parametrize("shape", ["GPT-2 with erf, smeared", "sliding windows"])
def test_an_engine_generates_what_the_torch_runner_does(shape):
    """Greedy replies over several steps, in any company: prompts in chunks, shared prefixes, several samples."""
    model = decoder(shape)
    prompts = [some_tokens(count, count % 3) for count in (1, 5, 33, 40, 47)]
    config = EngineConfig(prefill_chunk=16, cache_blocks=30)
    sampling = Sampling(temperature=0, max_tokens=20)
    expected = Engine(model, config=config).generate(prompts, sampling, samples=2)
    for runner in (NativeRunner(model), NativeRunner(model, threads=3, instructions="portable")):
        found = Engine(runner=runner, config=config).generate(prompts, sampling, samples=2)
        assert [[reply.tokens for reply in each] for each in found] == [[r.tokens for r in each] for each in expected]


def test_a_model_in_4_bits_is_read():
    """The numbers that NF4 stands for are packed again, in the width that is asked for."""
    model = quantize_decoder(decoder("GPT-2"), progress=False)
    plain = decoder("GPT-2")
    with torch.no_grad():
        for name, layer in plain.named_modules():
            if isinstance(layer, nn.Linear) and name.startswith("blocks"):
                layer.weight.copy_(dense(model.get_submodule(name).quantized))
    assert torch.equal(logits_of(runner_of(model), some_tokens()), logits_of(runner_of(plain), some_tokens()))


def test_models_it_cannot_compute_are_refused():
    with pytest.raises(ValueError, match="mixture of experts"):
        NativeRunner(decoder(experts=ExpertsConfig(4)))
    with pytest.raises(ValueError, match="RoPE scaling is dynamic"):
        NativeRunner(decoder(rope_scaling=RopeScaling("dynamic", 2.0)))
    for said, changes in (
        ("its LayerNorm has no bias", {"norm": "layer", "norm_bias": False}),
        ("model.rope_pattern 'rn'", {"rope_pattern": "rn"}),
        ("model.window_rope_base 100.0", {"window_rope_base": 100.0, "window": 9}),
        ("model.norm_position 'both'", {"norm_position": "both"}),
        ("model.parallel_residual True", {"parallel_residual": True}),
        ("model.qk_norm_over 'all'", {"qk_norm": True, "qk_norm_over": "all"}),
        ("model.qk_norm_over 'own_head'", {"qk_norm": True, "qk_norm_over": "own_head"}),
        ("model.attention_scale 0.2 without rotary", {"attention_scale": 0.2, "positions": "learned"}),
        ("model.residual_scale 0.2 beside model.qk_norm", {"residual_scale": 0.2, "qk_norm": True}),
        ("model.attention_softcap 2.0", {"attention_softcap": 2.0}),
        ("model.logit_softcap 2.0", {"logit_softcap": 2.0}),
        ("model.attention_sinks True", {"attention_sinks": True}),
        ("model.attention_chunk 8", {"attention_chunk": 8, "window_pattern": "c"}),
        ("model.qk_l2_norm True", {"qk_l2_norm": True}),
        ("model.query_temperature 0.1", {"query_temperature": 0.1}),
        ("its activation is clamped_swiglu", {"activation": "clamped_swiglu"}),
    ):
        with pytest.raises(ValueError, match=said):
            NativeRunner(decoder(**changes))
    with pytest.raises(ValueError, match="not a Decoder"):
        NativeRunner(nn.Linear(2, 2))
    adapted = decoder()
    add_adapter(adapted, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="adapter"):
        NativeRunner(adapted)
    with pytest.raises(ValueError, match="weights must be one of float32, bfloat16, int8, int4, got 'int5'"):
        NativeRunner(decoder(), "int5")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        NativeRunner(decoder(), threads=0)
    with pytest.raises(ValueError, match="no instructions named mmx"):
        NativeRunner(decoder(), instructions="mmx")


def test_caches_it_cannot_keep_are_refused():
    runner = NativeRunner(decoder())
    with pytest.raises(ValueError, match=r"block_size must be a multiple of 16 .* got 12"):
        runner.allocate(4, 12, "auto")
    with pytest.raises(ValueError, match=r"cache_dtype must be float32 or bfloat16 .* got int8"):
        runner.allocate(4, 16, "int8")
    with pytest.raises(ValueError, match="has no adapters, got 'french'"):
        runner.check_adapter("french")
    assert runner.default_blocks(16, "float32", 4, None) == 4 * 8
    assert runner.default_blocks(16, "float32", 4, 2 * 2 * 2 * 16 * 16 * 4 * 3) == 3


def test_calls_out_of_range_are_refused():
    """Each would read or write memory that is not the cache's."""
    model, tokens = decoder(), some_tokens(129)
    runner = runner_of(model)
    eight = list(range(8))
    for wrong, message in (
        (Chunk([301], 0, eight, 1), "tokens must be from 0 to 300"),
        (Chunk([-1], 0, eight, 1), "tokens must be from 0 to 300"),
        (Chunk(tokens, 0, [*eight, 8], 1), "1 to 128 tokens, got 0 and 129 more"),
        (Chunk([5], 128, [*eight, 8], 1), "1 to 128 tokens, got 128 and 1 more"),
        (Chunk([5], -1, eight, 1), "1 to 128 tokens, got -1 and 1 more"),
        (Chunk([], 3, eight, 0), "1 to 128 tokens, got 3 and 0 more"),
        (Chunk(tokens[:17], 0, [0], 1), "too few blocks"),
        (Chunk([5], 0, [24], 1), "blocks are numbered from 0 to 23"),
        (Chunk([5], 0, [-1], 1), "blocks are numbered from 0 to 23"),
        (Chunk([5, 6], 0, [0], 3), "wanted must be places of tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.forward([wrong])
    with pytest.raises(ValueError, match="blocks are numbered from 0 to 23"):
        runner.copy_blocks([(0, 24)])
    with pytest.raises(ValueError, match="the cache is of another model"):
        NativeRunner(decoder(layers=3)).decoder.forward(
            runner.cache,
            *(np.array([0], dtype) for dtype in ("int32", "int64")),
            np.array([1]),
            np.zeros((1, 1), "int32"),
            np.array([-1], "int32"),
            np.array([0]),
        )


def test_two_threads_may_call_at_once():
    runner = runner_of(decoder(), threads=2)
    first, second = some_tokens(100), some_tokens(90, 1)
    expected = [logits_of(runner, first), logits_of(runner, second)]
    found: dict[int, list[Tensor]] = {0: [], 1: []}

    def read(which: int, tokens: list[int], first_block: int) -> None:
        for _ in range(10):
            found[which].append(runner.forward([chunk(tokens, 0, len(tokens), first_block)]))

    threads = [threading.Thread(target=read, args=args) for args in ((0, first, 0), (1, second, 8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in (0, 1):
        assert all(torch.equal(each, expected[which]) for each in found[which])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_of_a_fork_starts_threads_of_its_own():
    """The parent's threads do not exist in the child, which would wait for them forever."""
    runner, tokens = runner_of(decoder(), threads=3), some_tokens(20)
    expected = logits_of(runner, tokens).numpy()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            counts = np.array([20])
            blocks, none = np.array([[0, 1]], "int32"), np.array([-1], "int32")
            arguments = np.array(tokens, "int32"), np.array([0]), counts, blocks, none, np.arange(20)
            found = runner.decoder.forward(runner.cache, *arguments)
            del runner
            os._exit(0 if np.array_equal(found, expected) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_a_long_call_is_stopped_by_a_signal():
    """The portable code would take minutes for this prompt."""
    model = decoder(width=256, layers=8, ff_width=2048, context=4096)
    runner = NativeRunner(model, threads=2, instructions="portable")
    runner.allocate(256, BLOCK, "float32")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    tokens = some_tokens(4096)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            runner.forward([chunk(tokens, 0, 4096)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    again = runner_of(model, threads=2, instructions="portable")
    assert torch.equal(logits_of(runner, tokens[:3]), logits_of(again, tokens[:3]))


def test_batch_invariant_mode_is_not_promised():
    """Trap: log-probabilities that are compared with those of training, and come from other products."""
    with pytest.raises(ValueError, match="batch_invariant needs a model in PyTorch, and NativeRunner has none"):
        Engine(runner=NativeRunner(decoder()), config=EngineConfig(batch_invariant=True))
