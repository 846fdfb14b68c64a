"""What only a GPU can show: graph capture, streams, a second device, no synchronisation."""

import pytest
import torch
from llmfast.kernels import geglu, gelu, layer_norm, rms_norm, rope, swiglu

pytestmark = pytest.mark.gpu


def block(x, weight):
    """Every op once, in a chain."""
    y, h = rms_norm(x, weight, residual=x)
    y = layer_norm(y, weight, weight) + h
    q, k = rope(y.unflatten(-1, (4, -1)), y.unflatten(-1, (4, -1)))
    y = (q + k).flatten(-2)
    return gelu(swiglu(y, y) + geglu(y, y), weight)


def inputs(device="cuda"):
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(2, 64, 256, generator=generator, device=device, dtype=torch.bfloat16)
    weight = torch.randn(256, generator=generator, device=device, dtype=torch.bfloat16)
    return x.requires_grad_(), weight.requires_grad_()


def step(x, weight):
    y = block(x, weight)
    return y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))


def test_captures_into_a_cuda_graph():
    x, weight = inputs()
    expected = [t.clone() for t in step(x, weight)]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(x, weight)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, weight)
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    for found, wanted in zip(captured, expected, strict=True):
        assert torch.equal(found, wanted)


def test_does_not_synchronise():
    x, weight = inputs()
    step(x, weight)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_stream_that_is_current():
    x, weight = inputs()
    expected = step(x, weight)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = x.detach() * 1
        found = step(late.requires_grad_(), weight)
    stream.synchronize()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_runs_on_the_device_of_its_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    first, second = step(*inputs("cuda:0")), step(*inputs("cuda:1"))
    for one, other in zip(first, second, strict=True):
        assert other.device.index == 1
        assert torch.equal(one.cpu(), other.cpu())


def test_torch_compile_gives_the_same_bits():
    x, weight = inputs()
    compiled = torch.compile(rms_norm, fullgraph=True)
    assert torch.equal(compiled(x, weight), rms_norm(x, weight))
