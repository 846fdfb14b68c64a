"""Attention where numbers and offsets are at their limits: logits of 10,000, and tensors that pass 2³¹ elements.

The trap in the second: an offset of 32 bits overflows without a word, and reads or writes another place.
"""

import pytest
import torch
from attention_cases import Case, assert_exact, assert_rows_exact, eager_attention, steps_of
from far_storage import FAR, FarStorage, sparse
from kernel_testing import assert_as_exact_as, random_tensor, require_interpreter
from llmfast.kernels import backend, flash_attention, flash_decode
from llmfast.kernels.attention import decode, ops
from llmfast.kernels.frame.launch import run
from llmfast.kernels.frame.plan import Plan

# ------------------------------------------------------------------------------------------------- large logits

MASKS = [
    {},
    {"causal": True},
    {"window": (20, 5)},
    {"softcap": 30.0},
    {"sinks": True},
    {"causal": True, "window": (20, -1), "softcap": 50.0, "sinks": True, "dropout_p": 0.3},
]


def case(dtype=torch.float32, **options):
    plain = {"causal": False, "window": None, "softcap": None, "sinks": False, "dropout_p": 0.0}
    return Case(D=16, S=70, T=70, ratio=2, dtype=dtype, heads_last=False, **plain | options)


@pytest.mark.numeric
@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("options", MASKS, ids=str)
def test_large_logits_forward_and_backward(device, options, size):
    assert_exact(case(**options), device, logits=size)


@pytest.mark.numeric
@pytest.mark.parametrize("options", MASKS, ids=str)
def test_large_logits_in_16_bits_give_numbers(device, options):
    """Where the products of PyTorch's own ops overflow float16, so that there is no yardstick."""
    given = case(torch.float16, **options)
    inputs = {name: x.requires_grad_() for name, x in given.inputs(device, logits=1e4).items()}
    out, lse = flash_attention(**inputs, **given.options(), return_lse=True)
    gradients = torch.autograd.grad(out.float().sum() + lse.sum(), inputs.values())
    assert all(x.isfinite().all() for x in (out, lse, *gradients))
    exact_inputs = {name: x.detach().double() for name, x in inputs.items()}
    if not given.dropout_p:
        exact, _ = eager_attention(**exact_inputs, **given.options())
        steps = steps_of(torch.float16, **given.options())
        assert_as_exact_as("out", out, None, exact, lambda: steps(**exact_inputs)[0])


@pytest.mark.parametrize("sink", [-1e4, 1e4])
def test_large_sinks(device, sink):
    """One that takes nothing, and one that takes everything and leaves 0."""
    inputs = case(sinks=True).inputs(device)
    inputs["sinks"] = torch.full_like(inputs["sinks"], sink)
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    out, lse = flash_attention(**inputs, return_lse=True)
    gradients = dict(zip(inputs, torch.autograd.grad(out.sum() + lse.sum(), inputs.values()), strict=True))
    if sink > 0:
        assert (out == 0).all()
        assert (lse == sink).all()
        assert (gradients["sinks"] == lse.shape[2]).all()
        assert all((gradients[name] == 0).all() for name in "qkv")
    else:
        assert torch.equal(out, flash_attention(*(inputs[name] for name in "qkv")))
        assert (gradients["sinks"] == 0).all()


@pytest.mark.numeric
@pytest.mark.parametrize("options", [x for x in MASKS if "dropout_p" not in x], ids=str)
def test_large_logits_while_decoding(device, options):
    """600 keys are split in two parts, whose maxima lie 10,000 apart."""
    options = options | ({"sinks": random_tensor((4,), device=device, seed=9)} if options.get("sinks") else {})
    q = random_tensor((1, 4, 2, 16), device=device) * 1e4
    k, v = (random_tensor((1, 2, 600, 16), device=device, seed=i) for i in (1, 2))
    options = {"causal": False} | options
    found = flash_decode(q, k, v, torch.tensor([600], dtype=torch.int32, device=device), **options, return_lse=True)
    assert_rows_exact(found, (q, k, v), **options)


# -------------------------------------------------------------------------------------------------- large offsets

PLACES = ["batch", "head", "row"]


def tensors(place, device):
    """q, k, v and a gradient of the output. Where rows lie far apart, the last tile of 64 begins past 2³¹."""
    length = 330 if place == "row" else 20
    shapes = {
        "q": (2, 2, length, 16),
        "k": (2, 2, length, 16),
        "v": (2, 2, length, 16),
        "d_out": (2, 2, length, 16),
    }
    shapes = {name: shape if place == "batch" else (1, *shape[1:]) for name, shape in shapes.items()}
    return {name: random_tensor(shape, torch.float16, device, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def attend(q, k, v, d_out, **options):
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out, lse = flash_attention(q, k, v, **options, return_lse=True)
    return out, lse, *torch.autograd.grad((out, lse), (q, k, v), (d_out, torch.ones_like(lse)))


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", [{"causal": True}, {"window": (9, 9), "softcap": 2.0}], ids=str)
def test_inputs_and_outputs_past_2_to_the_31(device, place, options, monkeypatch):
    """q, k, v, the output, its gradient, and the gradients of q, k and v."""
    given = tensors(place, device)
    expected = attend(**given, **options)
    far = FarStorage(place, torch.float16, device)
    made = []

    def far_rows(x):
        made.append(far.empty(x.shape))
        return made[-1]

    monkeypatch.setattr(ops, "empty_rows", far_rows)
    found = attend(**{name: far.copy(x) for name, x in given.items()}, **options)
    assert len(made) == 4
    assert_equal(found, expected)


def test_packed_tokens_past_2_to_the_31(device, monkeypatch):
    given = {name: x[0].transpose(0, 1) for name, x in tensors("row", device).items()}
    cu = torch.tensor([0, 290, 290, 330], dtype=torch.int32, device=device)  # the last one begins and ends far away
    expected = attend(**given, cu_seqlens_q=cu, causal=True)
    far = FarStorage("row", torch.float16, device)

    def far_tokens(x):
        return far.empty((1, x.shape[1], x.shape[0], x.shape[2]))[0].transpose(0, 1)

    monkeypatch.setattr(ops, "empty_rows", far_tokens)
    assert_equal(
        attend(**{name: far_tokens(x).copy_(x) for name, x in given.items()}, cu_seqlens_q=cu, causal=True),
        expected,
    )


def spread(x, starts):
    """x with its elements at ``starts`` on, of which each begins a row of the last dimension."""
    storage = sparse(starts[-1] + x.shape[-1], x.dtype)
    rows = x.reshape(len(starts), -1)
    for start, row in zip(starts, rows, strict=True):
        storage[start : start + len(row)] = row
    return storage


def gather(storage, starts, x):
    for start, row in zip(starts, x.view(len(starts), -1), strict=True):
        row.copy_(storage[start : start + len(row)])


def arguments_of(plan, tensors):
    """All arguments and options of a launch, by name."""
    return {**dict(zip(plan.kernel.arg_names, tensors, strict=False)), **plan.options}


def launches_far(stride, names):
    """``Plan.run`` as if the named tensors had rows ``stride`` elements apart, and no other sizes changed."""

    def launch(plan, like, *tensors):
        arguments = arguments_of(plan, tensors)
        compact = {name: arguments[name] for name in names if arguments.get(name) is not None}
        far = {}
        for name, x in compact.items():
            rows = x.numel() // x.shape[-1]
            far[name] = [row * stride for row in range(rows)]
            arguments[name] = spread(x, far[name])
        arguments["rows_in_all"] = stride
        run(plan.kernel, plan.grid, like, **arguments)
        for name, x in compact.items():
            gather(arguments[name], far[name], x)

    return launch


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (9, 9), "dropout_p": 0.3, "seed": 1}], ids=str)
def test_log_sum_exps_past_2_to_the_31(options, monkeypatch):
    """Two heads of 2³¹ rows would not fit: the kernels are told that they are, and visit the first 64 rows of each."""
    require_interpreter()
    given = {
        name: random_tensor((1, 2, 64, 16), torch.float32, seed=i) for i, name in enumerate(("q", "k", "v", "d_out"))
    }
    with backend("triton"):
        expected = attend(**given, **options)
        monkeypatch.setattr(Plan, "run", launches_far(FAR, ("lse", "delta", "d_lse")))
        assert_equal(attend(**given, **options), expected)


@pytest.mark.parametrize("place", PLACES)
def test_caches_past_2_to_the_31(device, place, monkeypatch):
    """Keys and values that are appended and read, the queries, and the output."""
    given = tensors(place, device)
    q, k_new, v_new = (given[name][:, :, :3] for name in ("q", "k", "v"))
    lengths = torch.full((q.shape[0],), given["k"].shape[2] - 3, dtype=torch.int32, device=device)

    def step(place_of, q, k, v):
        caches = [place_of(x) for x in (k, v)]
        out = flash_decode(place_of(q), *caches, lengths, k_new=place_of(k_new), v_new=place_of(v_new))
        return out, *caches

    expected = step(torch.clone, q, given["k"], given["v"])
    far = FarStorage(place, torch.float16, device)
    monkeypatch.setattr(decode, "empty_rows", lambda x: far.empty(x.shape))
    assert_equal(step(far.copy, q, given["k"], given["v"]), expected)


def test_pages_past_2_to_the_31(device):
    """A page table whose pages lie far apart, in another order than the keys."""
    pages = {name: random_tensor((3, 2, 16, 16), torch.float16, device, seed=i) for i, name in enumerate("kv")}
    q, new = (random_tensor((1, 2, 1, 16), torch.float16, device, seed=i) for i in (2, 3))
    table = torch.tensor([[2, 0, 1]], dtype=torch.int32, device=device)
    lengths = torch.tensor([40], dtype=torch.int32, device=device)

    def step(place_of):
        caches = [place_of(pages[name]) for name in "kv"]
        return flash_decode(q, *caches, lengths, k_new=new, v_new=new, page_table=table), *caches

    expected = step(torch.clone)
    far = FarStorage("batch", torch.float16, device)
    assert_equal(step(far.copy), expected)


def test_parts_and_page_tables_past_2_to_the_31(monkeypatch):
    """The kernels are told of parts of 2³¹ elements each, and of 2³¹ pages an entry."""
    require_interpreter()
    q = random_tensor((2, 2, 1, 16))
    k, v = (random_tensor((80, 1, 16, 16), seed=i) for i in (1, 2))
    table = torch.randperm(80, generator=torch.Generator().manual_seed(0)).view(2, 40).to(torch.int32)
    lengths = torch.tensor([640, 600], dtype=torch.int32)
    with backend("triton"):
        expected = flash_decode(q, k, v, lengths, page_table=table, return_lse=True)
        kernels = []

        def far_run(plan, like, *tensors):
            kernels.append(plan.kernel)
            given = arguments_of(plan, tensors)
            arguments = dict(given)
            splits, D = arguments["splits"], arguments["D"]
            assert splits == 2
            strides = {"part": FAR, "part_lse": FAR // D}
            sizes = {"part": given["rows_in_all"] * D, "part_lse": given["rows_in_all"]}
            starts = {name: [split * stride for split in range(splits)] for name, stride in strides.items()}
            compact = {name: given[name].as_strided((splits, size), (size, 1)) for name, size in sizes.items()}
            for name, places in starts.items():
                arguments[name] = spread(compact[name], places)
            if arguments.get("page_table") is not None:
                arguments["page_table"] = spread(table, [0, FAR])
                arguments["pages_per_entry"] = FAR
            arguments["rows_in_all"] = FAR // D
            run(plan.kernel, plan.grid, like, **arguments)
            if plan.kernel is decode.decode_kernel:
                for name, places in starts.items():
                    gather(arguments[name], places, compact[name])

        monkeypatch.setattr(Plan, "run", far_run)
        assert_equal(flash_decode(q, k, v, lengths, page_table=table, return_lse=True), expected)
    assert kernels == [decode.decode_kernel, decode.combine_kernel]
