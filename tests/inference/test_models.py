"""Models of every kind through the engine: adapters by request, 4-bit weights, steps for CUDA graphs, commands."""

import io
import re

import pytest
import torch
from llmfast.kernels import backend

from llmfast.commands.generate import generate
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import PLAIN, Engine
from llmfast.inference.graphs import StaticStep
from llmfast.inference.runner import Chunk
from llmfast.inference.torch_runner import TorchRunner
from llmfast.models.adapters.config import LoraConfig
from llmfast.models.adapters.inject import add_adapter
from llmfast.models.adapters.switch import set_adapter, use_adapter
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import save_model
from llmfast.models.quantize import quantize_decoder
from llmfast.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0, max_tokens=12)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [5] * 20]


def decoder(seed=0, **options):
    shape = {"vocab_size": 97, "width": 64, "layers": 2, "heads": 4, "context": 64}
    return Decoder(DecoderConfig(**shape | options), generator=torch.Generator().manual_seed(seed)).eval()


@torch.no_grad()
def read_again_each_time(model, prompt, count=12):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture
def adapted():
    model = decoder()
    generator = torch.Generator().manual_seed(1)
    for name in ("french", "polite"):
        add_adapter(model, LoraConfig(rank=4, target_modules=("qkv", "down")), name=name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters." in name:
                parameter.normal_(0, 0.3, generator=generator)
    set_adapter(model, "polite")
    return model


def test_each_request_has_its_adapter(adapted):
    """Requests with different adapters in one batch; a prefix that was read with one is of no use to another."""
    engine = Engine(adapted, config=EngineConfig(block_size=4, prefill_chunk=7))
    wanted = {None: "polite", "french": "french", "polite": "polite", PLAIN: None}
    expected = {}
    for asked, name in wanted.items():
        with use_adapter(adapted, name):
            expected[asked] = [read_again_each_time(adapted, prompt) for prompt in PROMPTS]
    assert len({str(tokens) for tokens in expected.values()}) == 3
    for _ in range(2):
        requests = [
            (asked, place, engine.submit(PROMPTS[place], GREEDY, adapter=asked))
            for asked in wanted
            for place in range(3)
        ]
        while engine.has_work:
            engine.step()
        for asked, place, request in requests:
            assert request.completions[0].tokens == expected[asked][place], (asked, place)
    assert engine.statistics().prefix_hits > 0
    assert engine.statistics().blocks_used == 0
    with pytest.raises(ValueError, match="the model has no adapter 'german'; it has 'french', 'polite'"):
        engine.submit([1], adapter="german")


def test_weights_in_four_bits_generate():
    for model in (
        quantize_decoder(decoder(), progress=False),
        quantize_decoder(decoder(norm="layer", activation="gelu_tanh", biases="all"), progress=False),
    ):
        replies = Engine(model).generate(PROMPTS, GREEDY)
        assert [reply.tokens for (reply,) in replies] == [read_again_each_time(model, prompt) for prompt in PROMPTS]


def test_a_model_in_training_is_left_as_it_was():
    model = decoder(dropout=0.5).train()
    replies = Engine(model).generate(PROMPTS, GREEDY)
    assert model.training
    assert [reply.tokens for (reply,) in replies] == [read_again_each_time(model.eval(), prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("options", [{}, {"smear": True}, {"positions": "learned", "window": 5}])
def test_a_step_that_a_cuda_graph_replays_is_the_plain_one(options):
    """With rows that are filled up, which must not touch what sequences hold. The kernels run in the interpreter."""
    model = decoder(**options)
    if model.smear is not None:
        torch.nn.init.constant_(model.smear.weight, 0.3)
    runner = TorchRunner(model, cuda_graphs=False)
    runner.allocate(6, 16, "auto")
    prompts = [([1, 2, 3], [4, 1]), ([7] * 18, [2, 5]), ([9], [0])]
    runner.forward([Chunk(tokens, 0, blocks, 0) for tokens, blocks in prompts])
    static = StaticStep(model, runner.cache, 4, spare_page=6)
    with torch.no_grad(), backend("triton"):
        for step in range(2):
            chunks = [
                Chunk([40 + step], len(tokens) + step, blocks, 1, tokens[-1] if step == 0 else 40)
                for tokens, blocks in prompts
            ]
            static.fill(chunks)
            found = static.run()[:3]
            with backend("auto"):
                expected = runner.forward(chunks)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- llmfast generate -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    tokenizer = Tokenizer.train(["the red fox and the dog"] * 3, 270, allow_smaller=True)
    save_model(path, decoder(vocab_size=tokenizer.n_vocab), write_tokenizer=tokenizer.save)
    return path


def written(folder, *args, **options):
    output = io.StringIO()
    text = generate(folder, *args, **{"tokens": 20} | options, output=output)
    return text, output.getvalue()


def test_samples_stop_texts_files_and_seeds(folder, tmp_path, monkeypatch):
    text, shown = written(folder, "the", seed=3)
    assert shown == f"the{text}\n"
    assert written(folder, "the", seed=3) == (text, shown)
    assert written(folder, "the", seed=4) != (text, shown)
    samples, _ = written(folder, "the", seed=3, samples=3)
    assert re.findall(r"--- \d of 3", samples) == ["--- 1 of 3", "--- 2 of 3", "--- 3 of 3"]
    assert f"--- 1 of 3\n{text}\n" in samples
    part = text[len(text) // 2]
    assert written(folder, "the", seed=3, stop=(part,))[0] == text[: text.index(part)]
    (tmp_path / "prompt.txt").write_text("the")
    assert written(folder, prompt_file=str(tmp_path / "prompt.txt"), seed=3) == (text, shown)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the")))
    assert written(folder, prompt_file="-", seed=3) == (text, shown)
    long = "the fox " * 60
    assert written(folder, long, truncate=True)[0]


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4", "nf4"])
def test_weights_of_every_width_generate(folder, weights):
    assert len(written(folder, "the", weights=weights, greedy=True)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a", "prompt_file": "b"}, "either a prompt, --prompt_file or --chat"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"min_p": 2.0}, "min_p must be from 0 to 1"),
        ({"prompt": "the fox " * 60}, "the prompt has"),
        ({"device": "cpu", "dtype": "bfloat16", "weights": "int8"}, "does not go with dtype bfloat16"),
    ],
)
def test_wrong_options_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        written(folder, **options)


def test_a_file_that_is_not_utf8_is_refused(folder, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="is not UTF-8: invalid start byte at byte 2"):
        written(folder, prompt_file=str(tmp_path / "bad.txt"))
