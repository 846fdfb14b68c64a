"""flash_attention with a mask of blocks: exact with every other option, and no product for a block that is hidden."""

import pytest
import torch
from attention_cases import BLOCK, BLOCKS, Case, assert_exact, launches_of, pairwise
from kernel_testing import assert_compiles, assert_same_bits, random_tensor, results
from llmfast.kernels import BlockMask, attention_weights, backend, batch_invariant, flash_attention
from llmfast.kernels.attention.launch import Tile, choosing
from llmfast.kernels.frame.launch import CHIPS

BLIND = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])[None, None]


def inputs(device, S=300, T=290, dtype=torch.float16, batch=1):
    shapes = {"q": (batch, 2, S, 16), "k": (batch, 1, T, 16), "v": (batch, 1, T, 16)}
    return {name: random_tensor(shape, dtype, device, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.numeric
@pytest.mark.parametrize("case", pairwise(BLOCKS), ids=str)
def test_every_pair_of_options(device, case):
    assert_exact(case, device, batch=2)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("causal", [False, True])
def test_the_tiles_of_other_chips(device, capability, causal):
    """Tensor descriptors, and on 9.0 a first tile outside of the loop, which may be of a hidden block."""
    case = Case(16, 300, 290, 2, causal, None, None, False, 0.0, torch.float16, False, (False, True))
    with launches_of(CHIPS[capability], device):
        assert_exact(case, device)


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_queries_whose_blocks_are_all_hidden(device, path):
    """Traps: a list of no blocks that is read as its first; a block of queries that is left unwritten."""
    mask = BLIND.to(device)
    with backend(path):
        found = results(lambda **x: flash_attention(**x, block_mask=mask, return_lse=True), inputs(device))
    assert not found["output 0"][:, :, BLOCK : 2 * BLOCK].any()
    assert (found["output 1"][:, :, BLOCK : 2 * BLOCK] == float("-inf")).all()
    assert not found["gradient of q"][:, :, BLOCK : 2 * BLOCK].any()
    assert all(x.isfinite().all() for name, x in found.items() if name != "output 1")
    assert found["output 1"][:, :, :BLOCK].isfinite().all()


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, "all"),
        ({"causal": True}, "diagonal"),
        ({"causal": True, "window": (140, -1), "softcap": 2.0, "dropout_p": 0.2, "seed": 1}, "diagonal"),
        ({"causal": True, "alibi": True, "sinks": True}, "diagonal"),
    ],
    ids=["all", "causal", "capped", "alibi"],
)
def test_a_mask_that_hides_nothing_more_changes_no_bit(device, options, seen):
    """Trap: tiles in another order, or one left out where blocks end within what a window lets a query see."""
    given, tensors = dict(options), inputs(device, S=290)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool, device=device)
    mask = mask.tril() if seen == "diagonal" else mask
    if given.pop("alibi", False):
        given["alibi_slopes"] = torch.tensor([0.5, 0.25], device=device)
    if given.pop("sinks", False):
        tensors["sinks"] = random_tensor((2,), device=device)
    plain = results(lambda **x: flash_attention(**x, **given, return_lse=True), tensors)
    found = results(lambda **x: flash_attention(**x, **given, block_mask=mask, return_lse=True), tensors)
    for name, value in found.items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_alibi_is_of_positions_and_not_of_blocks(device, path):
    tensors, slopes = inputs(device, S=140, dtype=torch.float32), torch.tensor([0.05, 0.02], device=device)
    mask = BLIND[..., [0, 2], :].to(device)
    seen = mask.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)[..., :140, :290]
    distance = (torch.arange(140, device=device)[:, None] + 150 - torch.arange(290, device=device)).abs()

    def right(q, k, v):
        scores = q @ k.mT / 4 - slopes[:, None, None] * distance
        return scores.masked_fill(~seen, -1e30).softmax(-1) * seen @ v

    def ours(**x):
        with backend(path):
            return flash_attention(**x, alibi_slopes=slopes, block_mask=mask)

    expected = results(right, tensors)
    for name, value in results(ours, tensors).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5)


@pytest.fixture
def multiplied(monkeypatch):
    """What the interpreter multiplies: the sizes of each product."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    done, create_dot = [], interpreter.InterpreterBuilder.create_dot

    def counted(self, a, b, *others):
        done.append(a.data.size * b.data.shape[-1])
        return create_dot(self, a, b, *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
    return done


@pytest.mark.parametrize("causal", [False, True])
def test_hidden_blocks_cost_no_product(device, multiplied, causal):
    """Forward, dQ, and dK with dV: of each, just the share of the blocks that are seen."""
    if device != "cpu":
        pytest.skip("counted in the interpreter")
    tensors = inputs(device, S=384, T=384)

    def cost(mask):
        del multiplied[:]
        results(lambda **x: flash_attention(**x, causal=causal, block_mask=mask), tensors)
        return sum(multiplied)

    one = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    assert cost(one) == 0
    below, above, many = one.clone(), one.clone(), one.clone()
    below[0, 1, 2, 0], above[0, 1, 0, 2] = True, True
    many[0, 0, 2, :2], many[0, 1, 1, 0] = True, True
    unit = cost(below)
    assert unit == (2 + 3 + 4) * BLOCK * BLOCK * 16
    assert cost(above) == (0 if causal else unit)
    assert cost(many) == 3 * unit
    if not causal:
        assert cost(None) == one.numel() * unit


@pytest.mark.parametrize("path", ["triton", "reference"])
def test_a_prepared_mask_gives_the_bits_of_its_tensor(device, path):
    """Traps: lists of queries taken for those of keys; a mask that follows later changes of the tensor."""
    tensors, mask = inputs(device), BLIND.to(device).clone()
    prepared = BlockMask(mask)
    with backend(path):
        expected = results(lambda **x: flash_attention(**x, block_mask=mask, return_lse=True), tensors)
        mask.fill_(True)
        found = results(lambda **x: flash_attention(**x, block_mask=prepared, return_lse=True), tensors)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_a_prepared_mask_is_not_prepared_again(device, monkeypatch):
    prepared = BlockMask(BLIND.to(device))
    monkeypatch.setattr("llmfast.kernels.attention.block_mask.block_lists", None)
    results(lambda **x: flash_attention(**x, block_mask=prepared), inputs(device))


def test_a_prepared_mask_of_larger_blocks(device):
    tensors, large = inputs(device, T=500), torch.tensor([[True, False], [True, True]])[None, None].to(device)
    found = flash_attention(**tensors, block_mask=BlockMask(large, 256))
    assert torch.equal(found, flash_attention(**tensors, block_mask=large, block_size=256))
    with pytest.raises(ValueError, match=r"block_size is 384, but block_mask is a BlockMask\(.*leave block_size out"):
        flash_attention(**tensors, block_mask=BlockMask(large, 256), block_size=384)


def test_a_prepared_mask_compiles_whole(device):
    mask, tensors = BlockMask(BLIND[..., :2, :2].to(device)), inputs(device, S=150, T=150)
    assert_compiles(lambda **x: flash_attention(**x, causal=True, block_mask=mask), tensors)


def test_batch_invariant_gives_a_row_the_same_bits_beside_any_other(device):
    mask, tensors = BLIND.expand(2, 2, 3, 3).to(device), inputs(device, batch=2)
    with batch_invariant():
        both = flash_attention(**tensors, block_mask=mask)
        alone = flash_attention(**{name: x[1:] for name, x in tensors.items()}, block_mask=mask[1:])
    torch.testing.assert_close(both, flash_attention(**tensors, block_mask=mask), rtol=1e-3, atol=1e-3)
    assert torch.equal(both[1:], alone)


def test_equal_bits_in_every_run_and_compiled_whole(device):
    mask, tensors = BLIND[..., :2, :2].to(device), inputs(device, S=150, T=150)

    def call(**x):
        return flash_attention(**x, causal=True, block_mask=mask)

    assert_same_bits(call, tensors)
    assert_compiles(call, tensors)


def test_larger_blocks(device):
    """Trap: a size of block that is taken for that of a tile."""
    tensors = inputs(device, S=300, T=500)
    large = torch.tensor([[True, False], [True, True]])[None, None].to(device)
    small = large.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, :, :3]
    found, expected = (
        results(lambda mask=mask, size=size, **x: flash_attention(**x, block_mask=mask, block_size=size), tensors)
        for mask, size in ((large, 256), (small, 128))
    )
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_a_measured_tile_is_no_larger_than_a_block(device):
    """Trap: a tile of 256 keys takes the mask of its first 128."""
    tensors, mask, found = inputs(device, S=130), BLIND[..., :2, :].to(device), []
    for keys in (128, 256):
        with choosing(keys_gradient=Tile(32, keys, 4, 1)):
            found.append(results(lambda **x: flash_attention(**x, block_mask=mask), tensors))
    assert all(torch.equal(value, found[0][name]) for name, value in found[1].items())


@pytest.mark.parametrize("from_lse", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_chosen_heads_and_rows(masked, from_lse):
    """Traps: the mask or the slope of another head, and distances from a row's place among the chosen ones."""
    q, k, v = (x.double() for x in inputs("cpu", batch=2).values())
    mask = torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    options = {"causal": True, "alibi_slopes": torch.tensor([[0.5, 0.02], [0.1, 0.0]])}
    options |= {"block_mask": mask} if masked else {}
    heads, rows = [1, 0, 1], [299, 0, 140, 200]
    out, lse = flash_attention(q, k, v, **options, return_lse=True)
    found = attention_weights(q, k, heads=heads, rows=rows, lse=lse if from_lse else None, **options)
    if masked:
        prepared = {**options, "block_mask": BlockMask(mask)}
        again = attention_weights(q, k, heads=heads, rows=rows, lse=lse if from_lse else None, **prepared)
        assert torch.equal(found, again)
    torch.testing.assert_close(found @ v, out[:, heads][:, :, rows])
    for h, head in enumerate(heads if masked else []):
        for r, row in enumerate(rows):
            seen = mask[:, head, row // BLOCK].repeat_interleave(BLOCK, -1)[:, :290]
            assert not found[:, h, r][~seen].any()


@pytest.mark.parametrize("S", [0, 1])
def test_no_keys_and_no_queries(device, S):
    q, k = torch.ones(1, 2, S, 16, device=device), torch.ones(1, 2, 0, 16, device=device)
    mask = torch.ones(1, 1, S, 0, dtype=torch.bool, device=device)
    for path in ("triton", "reference"):
        with backend(path):
            assert not flash_attention(q, k, k, block_mask=mask).any()


Q = torch.zeros(2, 4, 200, 16)


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (torch.ones(2, 2), {}, r"block_mask is bool of shape \(1 or 2, 1 or 4, 2, 2\) on cpu; got torch.float32"),
        (torch.ones(2, 3, 2, 2).bool(), {}, r"got torch.bool of shape \(2, 3, 2, 2\)"),
        (torch.ones(1, 1, 200, 200).bool(), {}, r"1 or 4, 2, 2\)"),
        (torch.ones(1, 1, 2, 2).bool(), {"block_size": 64}, "block_size is a positive multiple of 128; got 64"),
        (torch.ones(1, 1, 2, 2).bool(), {"block_size": 0}, "block_size is a positive multiple of 128; got 0"),
    ],
)
def test_errors_name_the_argument(mask, options, message):
    with pytest.raises(ValueError, match=message):
        flash_attention(Q, Q, Q, block_mask=mask, **options)


def test_packed_sequences_are_refused():
    cu = torch.tensor([0, 200], dtype=torch.int32)
    rows = Q[0].transpose(0, 1)
    with pytest.raises(ValueError, match="block_mask is of padded sequences"):
        flash_attention(rows, rows, rows, cu_seqlens_q=cu, block_mask=torch.ones(1, 1, 2, 2).bool())


@pytest.mark.parametrize(
    ("mask", "size", "message"),
    [
        (torch.ones(1, 1, 2, 2), 128, r"mask is bool of shape .*; got torch.float32 of shape \(1, 1, 2, 2\)"),
        (torch.ones(2, 2).bool(), 128, r"got torch.bool of shape \(2, 2\)"),
        (torch.ones(1, 1, 2, 2).bool(), 100, "block_size is a positive multiple of 128; got 100"),
    ],
)
def test_a_mask_that_cannot_be_prepared(mask, size, message):
    with pytest.raises(ValueError, match=message):
        BlockMask(mask, size)


def test_a_prepared_mask_of_other_lengths_is_refused():
    with pytest.raises(ValueError, match=r"block_mask is bool of shape \(1 or 2, 1 or 4, 2, 2\)"):
        flash_attention(Q, Q, Q, block_mask=BlockMask(BLIND))
