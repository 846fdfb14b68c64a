"""linear_cross_entropy: as exact as PyTorch's linear and cross_entropy, by each of its strategies."""

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kernel_testing import (
    assert_as_exact_as,
    assert_compiles,
    assert_keeps_inputs,
    assert_matches,
    assert_same_bits,
    products,
    random_tensor,
    results,
)
from llmfast.kernels import backend, linear_cross_entropy
from llmfast.kernels.frame.launch import CHIPS
from llmfast.kernels.losses.launch import chunk_columns, logits_launch

MODULE = sys.modules["llmfast.kernels.losses.linear_cross_entropy"]
CHUNKS = sys.modules["llmfast.kernels.losses.linear_chunks"]
LAUNCH = sys.modules["llmfast.kernels.losses.launch"]
TILES = sys.modules["llmfast.kernels.losses.linear_tiles"]
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 4.0}
# Each way: its path, the dtype to try it in, and the method that takes it.
WAYS = {
    "reference": ("reference", torch.float32, "auto"),
    "chunks": ("triton", torch.float32, "auto"),
    "tiles": ("triton", torch.float16, "tiles"),
}


def take_few(monkeypatch, method="auto"):
    """The method is taken even for few logits, in several chunks."""
    monkeypatch.setattr(LAUNCH, "FEW_LOGITS", -1)
    monkeypatch.setattr(LAUNCH, "FEW_ON_GPU", -1)
    monkeypatch.setattr(CHUNKS, "chunk_rows", lambda *sizes, **more: 48)
    monkeypatch.setattr(TILES, "chunk_columns", lambda tokens, vocabulary, width, itemsize, tile: tile.columns)
    taken = []
    choose = MODULE.strategy

    def strategy(*facts):
        given = facts[-1] if method == "auto" else method
        taken.append(choose(*facts[:-1], given))
        return taken[-1]

    monkeypatch.setattr(MODULE, "strategy", strategy)
    return taken


@pytest.fixture(params=WAYS)
def way(request, device, monkeypatch):
    """(device, dtype) at which this way is taken even for few logits, in several chunks."""
    path, dtype, method = WAYS[request.param]
    taken = take_few(monkeypatch, method)
    with backend(path):
        yield device, dtype
    assert set(taken) <= {request.param}


def problem(way, tokens=70, classes=300, width=64, bias=False):
    device, dtype = way
    inputs = {
        "hidden": random_tensor((tokens, width), dtype, device),
        "weight": random_tensor((classes, width), dtype, device, seed=1) / 4,
    }
    if bias:
        inputs["bias"] = random_tensor((classes,), dtype, device, seed=2)
    target = torch.randint(0, classes, (tokens,), generator=torch.Generator().manual_seed(7))
    target[1::3] = -100
    return inputs, target.to(device)


def wide(x):
    return x.double() if x.dtype == torch.float64 else x.float()


def torch_linear_cross_entropy(hidden, weight, target, bias=None, **options):
    return wide(F.cross_entropy(F.linear(hidden, weight, bias), target, **options))


@pytest.mark.numeric
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_as_exact_as_torch(way, reduction):
    inputs, target = problem(way, bias=True)

    def ours(**inputs):
        return linear_cross_entropy(target=target, reduction=reduction, **inputs)

    def peer(**inputs):
        return torch_linear_cross_entropy(target=target, reduction=reduction, **inputs)

    assert_matches(ours, peer, inputs)


def test_odd_vocabulary_longer_than_a_program(way):
    """Its rows start anywhere, and chunks' gradients are written in the logits' place, beside other rows."""
    inputs, target = problem(way, tokens=20, classes=2 * 4096 + 3)
    assert_matches(
        lambda **x: linear_cross_entropy(target=target, **x),
        lambda **x: torch_linear_cross_entropy(target=target, **x),
        inputs,
    )


@pytest.mark.numeric
@pytest.mark.parametrize("return_lse", [True, False])
def test_every_option(way, return_lse):
    inputs, target = problem(way, bias=True)
    class_weight = random_tensor((300,), torch.float32, way[0], seed=3).abs()
    valid = target != -100

    def ours(**inputs):
        return linear_cross_entropy(
            target=target, class_weight=class_weight, return_lse=return_lse, **OPTIONS, **inputs
        )

    def peer(hidden, weight, bias):
        z = 4.0 * torch.tanh(F.linear(hidden, weight, bias) / 4.0)
        lse = z.logsumexp(-1)
        w = class_weight.to(z.dtype)
        t = torch.where(valid, target, 0)
        nll = w[t] * (lse - z.gather(-1, t[:, None])[:, 0])
        smooth = ((lse[:, None] - z) * w).sum(-1) / 300
        loss = torch.where(valid, 0.9 * nll + 0.1 * smooth + 1e-2 * w[t] * lse**2, 0).sum() / w[t][valid].sum()
        return (wide(loss), wide(torch.where(valid, lse, 0))) if return_lse else wide(loss)

    assert_matches(ours, peer, inputs)


def test_leading_dimensions_and_strides(way):
    inputs, target = problem(way, tokens=72)
    inputs["hidden"] = inputs["hidden"].view(8, 9, 64)
    target = target.view(8, 9)

    def ours(hidden, weight):
        return linear_cross_entropy(hidden.transpose(0, 1), weight, target.T, reduction="none")

    def peer(hidden, weight):
        rows = hidden.transpose(0, 1).reshape(72, 64)
        return torch_linear_cross_entropy(rows, weight, target.T.reshape(72), reduction="none").view(9, 8)

    assert_matches(ours, peer, inputs, grad_layout="expanded")


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_all_targets_ignored_gives_zero_and_no_nan(way, tokens, reduction):
    inputs, target = problem(way, tokens=tokens, bias=True)
    found = results(
        lambda **x: linear_cross_entropy(target=torch.full_like(target, -100), reduction=reduction, **x),
        inputs,
    )
    for name, value in found.items():
        assert not value.any(), name


def test_ignored_tokens_may_hold_anything(way):
    inputs, target = problem(way)
    clean = results(lambda **x: linear_cross_entropy(target=target, **x), inputs)
    inputs["hidden"][target == -100] = float("nan")
    dirty = results(lambda **x: linear_cross_entropy(target=target, **x), inputs)
    for name, value in clean.items():
        assert torch.equal(dirty[name], value), name


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_matrix_products_have_no_rows_for_ignored_tokens(way, reduction):
    """A fine-tuning batch is mostly prompt: a third of the tokens takes a third of the work, whatever chunks hold."""
    if way[1] == torch.float16:
        pytest.skip("the products of tiles are Triton's, where the profiler sees none")
    inputs, target = problem(way, tokens=150)
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}

    def multiplications(target):
        return products(lambda: linear_cross_entropy(target=target, reduction=reduction, **inputs).sum().backward())

    every = multiplications(target.clamp(min=0))
    one_product = 150 * 300 * 64
    assert every == (3 if reduction == "mean" else 4) * one_product
    assert 3 * multiplications(torch.where(target == -100, 1, -100)) == every
    assert multiplications(torch.full_like(target, -100)) == 0


def test_second_backward_gives_the_same_gradients(way):
    inputs, target = problem(way, bias=True)
    for tensor in inputs.values():
        tensor.requires_grad_()
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(target=target, reduction=reduction, **inputs).sum()
        first, second = (torch.autograd.grad(loss * 3, list(inputs.values()), retain_graph=True) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)


def test_weight_gradient_is_summed_in_float32(way, monkeypatch):
    """2,049 equal contributions: a float16 sum over chunks would stop growing at 2,048 of them."""
    device, dtype = way
    monkeypatch.setattr(CHUNKS, "chunk_rows", lambda *sizes, **more: 1024)
    hidden = torch.zeros(2049, 64, device=device, dtype=dtype)
    hidden[:, 0] = 1.0
    weight = torch.zeros(2, 64, device=device, dtype=dtype, requires_grad=True)
    target = torch.zeros(2049, device=device, dtype=torch.int64)
    linear_cross_entropy(hidden, weight, target, reduction="sum").backward()
    exact = torch.tensor(-2049 / 2)
    assert weight.grad[0, 0].float() == exact.to(dtype).float()


def test_float16_gradients_survive_a_mean_over_many_tokens(way):
    """(p − 1) / N underflows in float16 unless the loss scale reaches it first."""
    inputs, target = problem(way)
    scale = 2.0**16

    def ours(**inputs):
        return linear_cross_entropy(target=target, reduction="sum", **inputs) * (2.0**-20 * scale)

    def peer(**inputs):
        return torch_linear_cross_entropy(target=target, reduction="sum", **inputs) * (2.0**-20 * scale)

    assert_matches(ours, peer, inputs)


def test_frozen_head_gets_no_gradient(way):
    inputs, target = problem(way, bias=True)
    inputs["hidden"].requires_grad_()
    for reduction in ("mean", "none"):
        linear_cross_entropy(target=target, reduction=reduction, **inputs).sum().backward()
    assert inputs["hidden"].grad is not None
    assert inputs["weight"].grad is None


def test_gradient_filter_drops_improbable_classes_and_nothing_unless_asked(way):
    """Classes 128 to 255, a whole tile, are improbable for every token."""
    inputs, target = problem(way)
    inputs["bias"] = torch.zeros(300, device=way[0], dtype=way[1])
    inputs["bias"][128:256] = -20.0
    target = torch.where((target >= 128) & (target < 256), 3, target)
    threshold = 1e-3

    def run(**options):
        found = results(lambda **x: linear_cross_entropy(target=target, reduction="sum", **options, **x), inputs)
        return found["gradient of weight"]

    hidden, weight, bias = (tensor.double() for tensor in inputs.values())
    one_hot = F.one_hot(torch.where(target == -100, 0, target), 300)
    probable = ((hidden @ weight.T + bias).softmax(-1) >= threshold) | (one_hot == 1)
    upstream = random_tensor((), device=way[0], seed=100).double() * (target != -100)[:, None]

    def weight_gradient(kept):
        p = (hidden @ weight.T + bias).softmax(-1)
        return (torch.where(kept, p - one_hot, 0) * upstream).T @ hidden

    for found, kept in ((run(), True), (run(gradient_filter=threshold), probable)):
        algorithm = partial(weight_gradient, torch.as_tensor(kept, device=way[0]))
        assert_as_exact_as("gradient of weight", found, None, algorithm(), algorithm)
    assert not probable.all()


def test_two_runs_have_equal_bits(way):
    inputs, target = problem(way, bias=True)
    assert_same_bits(lambda **x: linear_cross_entropy(target=target, **x), inputs)


def test_inputs_are_never_overwritten(way):
    inputs, target = problem(way, bias=True)
    assert_keeps_inputs(lambda **x: linear_cross_entropy(target=target, **x), inputs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_compile_takes_it_whole(way, reduction):
    inputs, target = problem(way, tokens=20, bias=True)
    assert_compiles(lambda **x: linear_cross_entropy(target=target, reduction=reduction, **x), inputs)


def test_operators_are_well_formed(way):
    inputs, target = problem(way, tokens=12, classes=20, bias=True)
    hidden, weight, bias = (tensor.requires_grad_() for tensor in inputs.values())
    how = {torch.float16: "tiles"}.get(way[1], "reference")
    for predicts in (False, True):
        call = (hidden, weight, bias, target, None, None, how, predicts, -100, 0.1, 1e-4, None)
        torch.library.opcheck(torch.ops.llmfast.linear_cross_entropy.default, call)
        if how != "tiles":
            torch.library.opcheck(torch.ops.llmfast.linear_cross_entropy_sum.default, ([True] * 3, *call))


def test_autocast_computes_in_its_dtype_and_keeps_the_parameters(device):
    with backend("reference"):
        inputs, target = problem((device, torch.float32))
        hidden, weight = (tensor.requires_grad_() for tensor in inputs.values())
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, target)
        loss.backward()
        rounded = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), target)
    assert torch.equal(loss, rounded)
    assert weight.grad.dtype == torch.float32


def test_few_logits_take_torch_linear_and_cross_entropy(device):
    inputs, target = problem((device, torch.float32))
    assert_matches(
        lambda **x: linear_cross_entropy(target=target, **x),
        lambda **x: torch_linear_cross_entropy(target=target, **x),
        inputs,
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("tma", [False, True])
def test_tiles_by_descriptor_and_chunks_in_16_bits(device, monkeypatch, tma, reduction):
    """Tiles that are twice as wide, where a chip copies by descriptor; with the filter, which counts in such tiles."""
    if device == "cuda" and tma and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("descriptors are for 9.0 and later")
    if tma:
        monkeypatch.setattr(TILES, "logits_launch", lambda chip, heavy: LAUNCH.WIDE_BY_TMA)
    take_few(monkeypatch, "tiles" if tma else "chunks")
    inputs, target = problem((device, torch.float16), tokens=150, classes=600, bias=True)
    for gradient_filter in (None, 1e-12):  # so low that it drops nothing
        assert_matches(
            lambda filter=gradient_filter, **x: linear_cross_entropy(
                target=target, reduction=reduction, gradient_filter=filter, **x
            ),
            lambda **x: torch_linear_cross_entropy(target=target, reduction=reduction, **x),
            inputs,
        )


@pytest.mark.parametrize(
    ("options", "capability", "taken"),
    [
        ({}, 90, "chunks"),
        ({"reduction": "sum"}, 80, "chunks"),
        ({"reduction": "none"}, 90, "tiles"),
        ({"return_lse": True}, 90, "tiles"),
        ({"gradient_filter": 1e-3}, 90, "tiles"),
        ({"reduction": "none"}, 100, "chunks"),
        ({"method": "tiles"}, 100, "tiles"),
        ({"method": "tiles"}, None, "reference"),
        ({"method": "chunks", "reduction": "none"}, 90, "chunks"),
    ],
)
def test_method_that_is_taken(monkeypatch, options, capability, taken):
    """Three products where the loss is one number, and no logits where each token's is asked for."""
    calls = []
    monkeypatch.setattr(LAUNCH, "FEW_LOGITS", -1)
    monkeypatch.setattr(LAUNCH, "FEW_ON_GPU", -1)
    monkeypatch.setattr(MODULE, "use_triton", lambda *tensors: capability is not None)
    monkeypatch.setattr(MODULE, "capability_of", lambda *device: capability)

    def record(*call):
        calls.append(call[6])
        raise StopIteration

    monkeypatch.setattr(MODULE, "tokens_op", record)
    inputs, target = problem(("cpu", torch.float16))
    with pytest.raises(StopIteration):
        linear_cross_entropy(target=target, **inputs, **options)
    assert calls == [taken]


def test_tiles_are_refused_where_there_are_none(device):
    for dtype, width in ((torch.float32, 64), (torch.float16, 40)):
        inputs, target = problem((device, dtype), width=width)
        with pytest.raises(ValueError, match=rf"needs hidden in 16 bits .* got {dtype} and {width}"):
            linear_cross_entropy(target=target, method="tiles", **inputs)


def test_workspace_stays_within_what_the_docstring_says():
    mib = 2**20
    for chip in CHIPS.values():
        tile = logits_launch(chip, False)
        for tokens, classes, width in ((8192, 128256, 4096), (16384, 248320, 2048), (2**20, 128256, 4096)):
            columns = chunk_columns(tokens, classes, width, 2, tile)
            assert columns * tokens * 2 <= max(256 * mib, (tokens + classes) * width * 2 // 4)
            assert columns >= 1024


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_captures_into_a_cuda_graph(monkeypatch, dtype):
    monkeypatch.setattr(LAUNCH, "FEW_ON_GPU", -1)
    inputs, target = problem(("cuda", dtype))
    hidden, weight = (tensor.requires_grad_() for tensor in inputs.values())
    by_tiles = dtype == torch.bfloat16
    method = "tiles" if by_tiles else "chunks"

    def gradients():
        return torch.autograd.grad(linear_cross_entropy(hidden, weight, target, method=method), (hidden, weight))

    gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    target[:10] = -100  # how many tokens count is not known when the graph is captured
    graph.replay()
    for one, other in zip(captured, gradients(), strict=True):
        if by_tiles:
            assert torch.equal(one, other)
        else:  # the graph multiplies ignored tokens too: a product of another shape may sum in another order
            torch.testing.assert_close(one, other, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(5, 3)}, r"weight must be \(V, E\) for hidden \(..., E\), got \(5, 3\)"),
        ({"bias": torch.ones(4)}, r"bias must have one element a class, \(5,\), got \(4,\)"),
        ({"weight": torch.ones(5, 4).bfloat16()}, "weight must have the dtype of hidden"),
        ({"target": torch.ones(3, dtype=torch.long)}, r"target must hold .* shape \(2,\)"),
        ({"gradient_filter": 2.0}, "gradient_filter must be a probability"),
        ({"method": "rows"}, "method must be one of 'auto', 'chunks', 'tiles', got 'rows'"),
        ({"class_weight": torch.ones(4)}, r"class_weight must have one element a class, \(5,\)"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {
        "hidden": torch.ones(2, 4),
        "weight": torch.ones(5, 4),
        "target": torch.ones(2, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**arguments, **change})
