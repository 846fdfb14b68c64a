"""What only a GPU can show: graph capture, streams, a second device, no synchronisation."""

from functools import cache

import pytest
import torch
from llmfast.kernels import (
    flash_attention,
    flash_decode,
    geglu,
    gelu,
    int8_linear,
    layer_norm,
    nf4_linear,
    quantize_int8,
    quantize_nf4,
    rms_norm,
    rope,
    swiglu,
)

pytestmark = pytest.mark.gpu


def pointwise(x, weight):
    """Norms, rotation and activations, in a chain."""
    y, h = rms_norm(x, weight, residual=x)
    y = layer_norm(y, weight, weight) + h
    q, k = rope(y.unflatten(-1, (4, -1)), y.unflatten(-1, (4, -1)))
    y = (q + k).flatten(-2)
    return gelu(swiglu(y, y) + geglu(y, y), weight)


def attention(x, weight):
    """Every row with sinks and dropout, and the last row again against the others as a cache in pages."""
    q, k, v = ((x * (i + 1)).unflatten(-1, (4, -1)).transpose(1, 2) for i in range(3))
    y = flash_attention(q, k, v, causal=True, sinks=weight[:4], dropout_p=0.1, seed=3)
    lengths = torch.full((x.shape[0],), 63, dtype=torch.int32, device=x.device)
    pages = torch.arange(2 * x.shape[0], dtype=torch.int32, device=x.device).view(-1, 2).flip(0)
    caches = (torch.zeros(4, 4, 32, 64, dtype=x.dtype, device=x.device) + 1 for _ in range(2))
    new = (t.detach()[:, :, -1:] for t in (k, v))
    last = flash_decode(
        q.detach()[:, :, -1:],
        *caches,
        lengths,
        **dict(zip(("k_new", "v_new"), new, strict=True)),
        page_table=pages,
    )
    return (y + last).transpose(1, 2).flatten(2)


@cache
def frozen(device):
    w = torch.randn(256, 256, generator=torch.Generator().manual_seed(1)).to(device) / 16
    return quantize_nf4(w), quantize_int8(w)


def quantized(x, weight):
    """4-bit and 8-bit layers of many tokens and of few, the first with an adapter."""
    packed, (codes, scale) = frozen(x.device)
    adapter = {"lora_a": weight.repeat(4, 1) / 16, "lora_b": weight[:, None].repeat(1, 4)}
    many = nf4_linear(x, packed, weight, **adapter) + int8_linear(x, codes, scale)
    few = nf4_linear(x[:, :4], packed, weight, **adapter) + int8_linear(x[:, :4], codes, scale)
    return many + few.repeat(1, x.shape[1] // 4, 1)


CHAINS = [pointwise, attention, quantized]
every_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.__name__)


def inputs(device="cuda"):
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(2, 64, 256, generator=generator, device=device, dtype=torch.bfloat16)
    weight = torch.randn(256, generator=generator, device=device, dtype=torch.bfloat16)
    return x.requires_grad_(), weight.requires_grad_()


def step(chain, x, weight):
    y = chain(x, weight)
    return y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))


@every_chain
def test_captures_into_a_cuda_graph(chain):
    x, weight = inputs()
    expected = [t.clone() for t in step(chain, x, weight)]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(chain, x, weight)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(chain, x, weight)
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    for found, wanted in zip(captured, expected, strict=True):
        assert torch.equal(found, wanted)


@every_chain
def test_does_not_synchronise(chain):
    x, weight = inputs()
    step(chain, x, weight)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(chain, x, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_chain
def test_runs_on_the_stream_that_is_current(chain):
    x, weight = inputs()
    expected = step(chain, x, weight)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = x.detach() * 1
        found = step(chain, late.requires_grad_(), weight)
    stream.synchronize()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@every_chain
def test_runs_on_the_device_of_its_tensors(chain):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    first, second = step(chain, *inputs("cuda:0")), step(chain, *inputs("cuda:1"))
    for one, other in zip(first, second, strict=True):
        assert other.device.index == 1
        assert torch.equal(one.cpu(), other.cpu())


def test_torch_compile_gives_the_same_bits():
    x, weight = inputs()
    compiled = torch.compile(rms_norm, fullgraph=True)
    assert torch.equal(compiled(x, weight), rms_norm(x, weight))
