"""The two paths of every op, Triton's kernels and plain PyTorch, behave alike.

Results, gradients and their dtypes, also under autocast, and what is refused.

The kernels run in Triton's interpreter, or, with a GPU, on it.
"""

import warnings

import pytest
import torch
from kernel_testing import require_interpreter
from llmfast.kernels import (
    adamw_,
    attention_weights,
    backend,
    cross_entropy,
    flash_attention,
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    flash_decode,
    geglu,
    gelu,
    int8_linear,
    layer_norm,
    linear,
    linear_cross_entropy,
    linear_kl_divergence,
    lora_linear,
    newton_schulz,
    nf4_linear,
    quantize_int8,
    quantize_nf4,
    rms_norm,
    rope,
    sdpa,
    swiglu,
)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WEIGHT = 0.2 * numbers(16, 32)
PACKED = quantize_nf4(0.2 * numbers(32, 64))
INT8 = quantize_int8(WEIGHT)
TARGET = torch.tensor([3, -100, 7, 1])
PROBABILITIES = numbers(4, 32, seed=9).softmax(-1)
ANGLES = numbers(6, 8)
BOUNDS = torch.tensor([0, 3, 6], dtype=torch.int32)
LENGTHS = torch.tensor([4, 5], dtype=torch.int32)
ROW, HEADS, FEW = numbers(4, 32), numbers(2, 4, 6, 16), numbers(2, 2, 6, 16, seed=1)
TOKENS = [numbers(6, heads, 16, seed=heads) for heads in (4, 2, 1)]
HALF = torch.rand(32)


def rotate(q, k):
    return torch.cat(rope(q, k, cos=ANGLES.cos().to(q), sin=ANGLES.sin().to(q)), 2)


OPS = {
    "swiglu": (swiglu, ROW),
    "swiglu of two": (swiglu, ROW, numbers(4, 32, seed=1)),
    "geglu": (geglu, ROW),
    "gelu": (gelu, ROW),
    "rms_norm": (rms_norm, ROW, HALF),
    "rms_norm with a residual": (lambda x, w, r: rms_norm(x, w, residual=r)[0], ROW, HALF, numbers(4, 32, seed=2)),
    "layer_norm": (layer_norm, ROW, HALF, HALF - 0.5),
    "rope": (rotate, numbers(2, 6, 4, 16), numbers(2, 6, 2, 16)),
    "attention": (lambda *x: flash_attention(*x, causal=True), HEADS, FEW, FEW + 1),
    "attention with a cap": (lambda *x: flash_attention(*x, causal=True, softcap=5.0), HEADS, FEW, FEW + 1),
    "packed attention": (
        lambda q, k, v: flash_attention(q, k, v, causal=True, cu_seqlens_q=BOUNDS),
        TOKENS[0],
        TOKENS[1],
        TOKENS[1] + 1,
    ),
    "sdpa": (lambda *x: sdpa(*x, is_causal=True, enable_gqa=True), HEADS, FEW, FEW + 1),
    "flash_attn_func": (lambda *x: flash_attn_func(*x, causal=True), HEADS, HEADS * 0.7, HEADS + 1),
    "attention_weights": (lambda q, k: attention_weights(q, k, causal=True), HEADS, FEW),
    "linear": (linear, ROW, WEIGHT),
    "cross_entropy": (lambda x: cross_entropy(x, TARGET, label_smoothing=0.1, z_loss=0.1), ROW),
    "cross_entropy of probabilities": (
        lambda x: cross_entropy(x, PROBABILITIES, label_smoothing=0.1, z_loss=0.1),
        ROW,
    ),
    "linear_cross_entropy": (lambda x, w: linear_cross_entropy(x, w, TARGET), ROW, WEIGHT),
    "linear_cross_entropy in chunks": (
        lambda x, w: linear_cross_entropy(x, w, TARGET, method="chunks"),
        ROW,
        WEIGHT,
    ),
    "linear_cross_entropy per token": (
        lambda x, w: linear_cross_entropy(x, w, TARGET, reduction="none"),
        ROW,
        WEIGHT,
    ),
    "linear_kl_divergence": (linear_kl_divergence, ROW, WEIGHT, numbers(4, 32, seed=3), WEIGHT * 0.5),
    "nf4_linear": (lambda x: nf4_linear(x, PACKED), numbers(4, 64)),
    "int8_linear": (lambda x: int8_linear(x, *INT8), ROW),
    "lora_linear": (
        lambda x, a, b: lora_linear(x, WEIGHT, lora_a=a, lora_b=b),
        ROW,
        numbers(4, 32, seed=4),
        numbers(16, 4, seed=5),
    ),
}
WITHOUT_GRADIENT = {
    "flash_decode": (lambda q, k, v: flash_decode(q, k, v, LENGTHS), HEADS[:, :, :1], FEW, FEW + 1),
    "newton_schulz": (newton_schulz, numbers(16, 32)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _interpreted():
    require_interpreter()


def on_both(call):
    """What a function gives on each path: tensors, or what it raises."""
    found = []
    for path in ("reference", "triton"):
        with backend(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found.append(call())
            except Exception as error:
                found.append(error)
    return found


def assert_alike(call, tolerance: float = 1e-5) -> None:
    plain, kernels = on_both(call)
    if isinstance(plain, Exception) or isinstance(kernels, Exception):
        assert (type(plain), str(plain)) == (type(kernels), str(kernels))
        return
    for mine, theirs in zip(kernels, plain, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


def with_gradients(name: str, dtypes: tuple[torch.dtype, ...] = ()) -> list[torch.Tensor]:
    function, *tensors = OPS[name]
    tensors = [x.clone() for x in tensors]
    for i, dtype in enumerate(dtypes):
        tensors[i] = tensors[i].to(dtype)
    for x in tensors:
        x.requires_grad_()
    out = function(*tensors)
    out.float().square().sum().backward()
    return [out.detach(), *(x.grad for x in tensors if x.grad is not None)]


@pytest.mark.parametrize("name", OPS)
def test_results_and_gradients(name):
    assert_alike(lambda: with_gradients(name))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtypes", [(), (torch.float16,)], ids=["float32", "mixed"])
def test_autocast(name, dtypes):
    """Traps: attention in float32 on one path only; a kernel that meets two dtypes."""

    def call():
        with torch.autocast("cpu", dtype=torch.float16):
            return with_gradients(name, dtypes)

    assert_alike(call, 1e-2)


def test_attention_is_in_the_dtype_of_autocast():
    for result in on_both(lambda: flash_attention(HEADS, FEW, FEW.half())):
        assert isinstance(result, ValueError)
    with torch.autocast("cpu", dtype=torch.float16):
        for result in on_both(lambda: flash_attention(HEADS, FEW, FEW.half())):
            assert result.dtype == torch.float16


@pytest.mark.parametrize(("width", "value_width"), [(12, 12), (16, 8), (8, 24), (5, 3), (1, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_heads_of_any_width_and_values_of_another(width, value_width, packed):
    """Trap: the scale of the width that the kernel sees."""
    tensors = [numbers(2, heads, 6, D, seed=D) for heads, D in ((4, width), (2, width), (2, value_width))]

    def call(function):
        def run():
            q, k, v = (x.clone().requires_grad_() for x in tensors)
            out, lse = function(q, k, v)
            (out.square().sum() + lse.sum()).backward()
            return [out.detach(), lse.detach(), q.grad, k.grad, v.grad]

        return run

    def ours(q, k, v):
        if not packed:
            return flash_attention(q, k, v, causal=True, return_lse=True)
        bounds = torch.tensor([0, 6, 12], dtype=torch.int32)
        rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        out, lse = flash_attention(*rows, causal=True, cu_seqlens_q=bounds, return_lse=True)
        return (x.unflatten(0, (2, 6)).transpose(1, 2) for x in (out, lse))

    def definition(q, k, v):
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        scores = (q @ k.mT / width**0.5).masked_fill(~torch.ones(6, 6).tril().bool(), float("-inf"))
        return scores.softmax(-1) @ v, scores.logsumexp(-1)

    expected = call(definition)()
    for found in on_both(call(ours)):
        assert not isinstance(found, Exception), found
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_ops_without_gradient(name):
    function, *tensors = WITHOUT_GRADIENT[name]
    assert_alike(lambda: [function(*tensors)], 1e-4)


def transformed(name: str, kind: str):
    function, *tensors = (OPS | WITHOUT_GRADIENT)[name]
    if kind == "grad":
        return torch.func.grad(lambda *x: function(*x).float().square().sum())(*tensors)
    if kind == "vmap":
        return torch.vmap(function)(*(torch.stack([x, x * 0.5]) for x in tensors))
    if kind == "dual":
        with torch.autograd.forward_ad.dual_level():
            return function(*(torch.autograd.forward_ad.make_dual(x, x) for x in tensors))
    return torch.func.jvp(function, tuple(tensors), tuple(map(torch.ones_like, tensors)))


@pytest.mark.parametrize("kind", ["grad", "vmap", "jvp", "dual"])
@pytest.mark.parametrize("name", OPS)
def test_transforms_of_torch_func_take_plain_pytorch(name, kind):
    """A kernel has no rules for them: where it is forced, a sentence says so, and otherwise plain PyTorch computes."""
    if name == "attention_weights":
        return  # of plain PyTorch on both paths
    plain, kernels = on_both(lambda: transformed(name, kind))
    assert isinstance(kernels, ValueError | RuntimeError)
    assert "torch.func's transforms" in str(kernels)
    no_rules = isinstance(plain, RuntimeError) and "torch.func's transforms" in str(plain)
    of_pytorch = isinstance(plain, NotImplementedError) and "forward AD" in str(plain)
    assert no_rules or of_pytorch or not isinstance(plain, Exception), plain


@pytest.mark.parametrize(
    "name", ["swiglu", "attention with a cap", "packed attention", "linear_cross_entropy in chunks"]
)
def test_gradients_of_torch_func_are_right(name):
    function, *tensors = OPS[name]
    expected = with_gradients(name)[1]
    found = torch.func.grad(lambda *x: function(*x).float().square().sum())(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def mesh(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_a_dtensor_takes_plain_pytorch_or_is_refused(mesh):
    """Trap: an operator that fails without a word about what it is."""
    from torch.distributed.tensor import Shard, distribute_tensor

    for name in ("swiglu", "rms_norm", "attention with a cap", "cross_entropy"):
        function, *tensors = OPS[name]
        expected = function(*tensors)
        wrapped = [distribute_tensor(x, mesh, [Shard(0)]) for x in tensors]
        with backend("triton"), pytest.raises(ValueError, match=r"one process's part of a DTensor only"):
            function(*wrapped)
        if name in ("swiglu", "rms_norm"):  # the others also have plain tensors: masks and targets
            torch.testing.assert_close(function(*wrapped).full_tensor(), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
def test_an_ignored_row_may_hold_anything(reduction, value):
    def call(function, *tensors):
        def run():
            x, *others = (each.clone().requires_grad_() for each in tensors)
            with torch.no_grad():
                x[1] = value
            loss = function(x, *others)
            loss.sum().backward()
            return [loss.detach(), x.grad, *(each.grad for each in others)]

        return run

    options = {"reduction": reduction}
    for run in (
        call(lambda x: cross_entropy(x, TARGET, **options, label_smoothing=0.1, z_loss=0.1), ROW),
        call(lambda x: cross_entropy(x, TARGET, **options, softcap=2.0), ROW),
        call(lambda x, w: linear_cross_entropy(x, w, TARGET, **options), ROW, WEIGHT),
        call(lambda x, w: linear_cross_entropy(x, w, TARGET, **options, method="chunks"), ROW, WEIGHT),
        call(lambda x, w: linear_kl_divergence(x, w, ROW, WEIGHT * 0.5, target=TARGET, **options), ROW + 0.5, WEIGHT),
    ):
        assert all(each.isfinite().all() for each in on_both(run)[0])
        assert_alike(run)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"weight": torch.rand(32)}])
@pytest.mark.parametrize("bad", [32, -1, 10**6])
def test_a_target_that_is_no_class_gives_nan(bad, options):
    """One behavior: an error on the CPU only would need the device to be waited for on a GPU."""
    target = torch.tensor([3, -100, bad, 1])

    def per_token():
        x = ROW.clone().requires_grad_()
        loss = cross_entropy(x, target, reduction="none", **options)
        loss[torch.tensor([0, 1, 3])].sum().backward()
        return [loss.detach().nan_to_num(-1.0), x.grad]

    assert_alike(per_token)
    losses = on_both(per_token)[0][0]
    assert losses[2] == -1
    assert (losses[torch.tensor([0, 3])] > 0).all()
    own = {"class_weight": options["weight"][:16]} if "weight" in options else options
    for call in (
        lambda: cross_entropy(ROW, target, **options),
        lambda: linear_cross_entropy(ROW, WEIGHT, target, **own),
        lambda: linear_cross_entropy(ROW, WEIGHT, target, **own, method="chunks"),
    ):
        assert all(loss.isnan() for loss in on_both(call))


SEQUENCES = [tuple, list, torch.tensor, torch.Size]


@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_window_may_be_any_sequence(kind):
    """Trap: a list is not equal to a tuple, so that [-1, -1] is taken for a window."""
    np = pytest.importorskip("numpy")
    q, k, v = HEADS.transpose(1, 2), FEW.transpose(1, 2), (FEW + 1).transpose(1, 2)
    cache = [numbers(2, 8, 2, 16, seed=i) for i in range(2)]
    cos, sin = ANGLES.cos(), ANGLES.sin()

    def through_all(window, no_window):
        def call():
            rotated = flash_attn_with_kvcache(
                q[:, :2],
                *(each.clone() for each in cache),
                k[:, :2],
                v[:, :2],
                cos,
                sin,
                LENGTHS - 2,
                window_size=no_window,
            )
            return [
                flash_attention(HEADS, FEW, FEW, window=window),
                flash_attn_func(q, k, v, window_size=window),
                flash_attn_func(q, k, v, window_size=no_window),
                flash_attn_varlen_func(TOKENS[0], *TOKENS[1:2] * 2, BOUNDS, BOUNDS, 3, 3, window_size=window),
                flash_attn_with_kvcache(q[:, :1], *cache, cache_seqlens=LENGTHS, window_size=window),
                flash_decode(HEADS[:, :, :1], *(x.transpose(1, 2) for x in cache), LENGTHS, window=window),
                attention_weights(HEADS, FEW, window=window),
                rotated,
            ]

        return call

    expected = on_both(through_all((1, 0), (-1, -1)))[0]
    given = [] if kind is torch.Size else [(kind((1, 0)), kind((-1, -1)))]
    for window, none in (*given, (np.array([1, 0]), np.array([-1, -1]))):
        for found in on_both(through_all(window, none)):
            assert not isinstance(found, Exception), found
            for mine, right in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [(1,), (1, 2, 3), 3, (-2, 0), (1.5, 0), "ab", (None, 1)])
def test_what_is_no_window_is_refused_everywhere(window):
    q, k, v = HEADS.transpose(1, 2), FEW.transpose(1, 2), FEW.transpose(1, 2)
    for call in (
        lambda: flash_attention(HEADS, FEW, FEW, window=window),
        lambda: flash_attn_func(q, k, v, window_size=window),
        lambda: flash_attn_with_kvcache(q[:, :1], k, v, cache_seqlens=LENGTHS, window_size=window),
        lambda: attention_weights(HEADS, FEW, window=window),
    ):
        for result in on_both(call):
            assert isinstance(result, ValueError)
            assert "is two integers (left, right)" in str(result)


def test_other_sequences_may_be_lists_too():
    def steps(betas):
        def call():
            parameter = ROW.clone()
            moments = [[torch.zeros_like(parameter)] for _ in range(2)]
            adamw_([parameter], [ROW * 0.1], *moments, [torch.ones(())], lr=0.1, betas=betas)
            return [parameter, newton_schulz(ROW, coefficients=kind(3.4445, -4.775, 2.0315))]

        def kind(*values):
            return type(betas)(values)

        return call

    expected = on_both(steps((0.9, 0.95)))[0]
    for found in on_both(steps([0.9, 0.95])):
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
