"""The forward pass for 9.0 with one warp that loads and two warp groups that compute (FlashAttention-3, Shah et al.
2024), in Gluon: on that chip Triton's own compiler gives all warps the same work.

Each warp group owns 64 rows. It starts the product of its queries with the next tile of keys, then that of the present
probabilities with their values, and computes the next probabilities while the second runs (section 3.2 there). The
loading warp keeps STAGES tiles of keys and of values under way, across the border between one tile of rows and the
next. A pair of barriers, "full" and "empty", guards each tile in shared memory; their n-th use has phase n & 1.

Names: a program takes ``tiles`` of 128 rows in turn, and for each of them walks over ``count`` tiles of keys, from the
last one to the first. ``used`` counts the tiles of keys since the program began.
"""

from ..frame._triton import gl, gluon, hopper
from ..frame.launch import cdiv, run
from .forward import tile_of_turn, turns
from .tiles import INF, LN_2, LOG2_E, key_ranges, sees

mbarrier, tma = hopper.mbarrier, hopper.tma
# Triton's names of the copies since 3.8, and before.
copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
copy_out = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global

GROUPS = gl.constexpr(2)  # warp groups that compute
ROWS = gl.constexpr(64)  # of each: what one instruction of wgmma takes
KEYS = 128  # of a tile: at 256, D = 64 spills 320 bytes
STAGES_OF_WIDTH = {64: 3, 128: 2}  # with the tiles of queries and of output 129 and 193 KB
# Of the second computing group and the loading warp. The first group is the program itself, and is left with 240
# registers a thread, too, of the REGISTERS that each thread of three times four warps begins with.
WORKER_WARPS = gl.constexpr([4, 1])
WORKER_REGISTERS = gl.constexpr([240, 24])
REGISTERS = 168


def in_gluon(function):
    """A Triton function as one that Gluon code calls."""
    return gluon.jit(getattr(function, "fn", function))


key_ranges, sees, tile_of_turn, turns = (in_gluon(f) for f in (key_ranges, sees, tile_of_turn, turns))


@gluon.jit
def key_tiles(first_row, S, T, right, BLOCK_N: gl.constexpr):
    """(tiles of keys that a program's rows see, at least 1; how many of these, from the last on, need a mask)."""
    _low, _full_low, full_high, high = key_ranges(first_row, S, T, None, right, GROUPS * ROWS, BLOCK_N)
    count = gl.maximum(gl.cdiv(high, BLOCK_N), 1)
    return count, gl.maximum(count - full_high // BLOCK_N, 1)


@gluon.jit
def slot(ring, use, STAGES: gl.constexpr):
    """The tile or barrier of a ring that the use-th use falls on."""
    return ring.index(use % STAGES)


@gluon.jit
def as_matrix(tile):
    """(1, 1, rows, D) in shared memory as (rows, D)."""
    return tile.reshape([tile.shape[2], tile.shape[3]])


@gluon.jit
def copy_tile(descriptor, place, full, empty, to, phase):
    """Starts a copy into shared memory once the tile is empty. The first wait returns at once: the phase before the
    first counts as complete."""
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(full, descriptor.block_type.nbytes)
    copy_in(descriptor, place, full, to)


@gluon.jit
def load(
    descriptors, buffers, barriers, sizes,
    GROUP: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PERSISTENT: gl.constexpr,
):  # fmt: skip
    """The loading warp."""
    q_descriptor, k_descriptor, v_descriptor = descriptors
    q_buffer, k_buffer, v_buffer, _out_buffer = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, _go = barriers
    heads, batch, tiles, S, T, right = sizes
    taken = 0
    used = 0
    for turn in range(turns(tiles, heads * batch, PERSISTENT)):
        tile, head_in_all, exists = tile_of_turn(turn, tiles, PERSISTENT)
        if exists:
            head = head_in_all % heads
            entry = head_in_all // heads
            first_row = tile * GROUPS * ROWS
            count, _masked = key_tiles(first_row, S, T, right, BLOCK_N)
            for i in range(count):
                place = [entry, head // GROUP, (count - 1 - i) * BLOCK_N, 0]
                phase = used // STAGES & 1
                full, empty = slot(k_full, used, STAGES), slot(k_empty, used, STAGES)
                copy_tile(k_descriptor, place, full, empty, slot(k_buffer, used, STAGES), phase)
                full, empty = slot(v_full, used, STAGES), slot(v_empty, used, STAGES)
                copy_tile(v_descriptor, place, full, empty, slot(v_buffer, used, STAGES), phase)
                used += 1
                if i == 0:  # The first keys and values do not wait until the queries before these are released.
                    for group in gl.static_range(GROUPS):
                        place = [entry, head, first_row + group * ROWS, 0]
                        full, empty = q_full.index(group), q_empty.index(group)
                        copy_tile(q_descriptor, place, full, empty, q_buffer.index(group), taken & 1)
            taken += 1


@gluon.jit
def softmax_step(
    scores, maximum, denominator, scale, rows, first_key, S, T, right,
    BLOCK_N: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """(probabilities, maximum, denominator, factor for what was summed before), as in ``forward.attend_keys``."""
    if MASKED:
        keys = first_key + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, scores.type.layout))
        scores = gl.where(sees(rows[:, None], keys[None, :], S, T, None, right), scores, -INF)
    new_maximum = gl.maximum(maximum, gl.max(scores, 1) * scale)
    base = gl.where(new_maximum == -INF, 0.0, new_maximum) if MASKED else new_maximum
    p = gl.exp2(scores * scale - base[:, None])
    rescale = gl.exp2(maximum - base)
    return p, new_maximum, denominator * rescale + gl.sum(p, 1), rescale


@gluon.jit
def attend_keys(
    state, begin, end, count, used, group, q, buffers, barriers, rows, S, T, right, scale,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr, ALTERNATE: gl.constexpr,
):  # fmt: skip
    """Tiles ``begin`` ... ``end`` of keys. ``p`` are the probabilities of the tile before, whose product with its
    values is still to come; the keys of tile ``begin`` have arrived."""
    acc, p, maximum, denominator, steps = state
    _q_buffer, k_buffer, v_buffer, _out_buffer = buffers
    _q_full, _q_empty, k_full, k_empty, v_full, v_empty, go = barriers
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    for i in range(begin, end):
        this = used + i
        before = this - 1
        if ALTERNATE:  # One group starts its products while the other is at its softmax.
            mbarrier.wait(go.index(group), (steps & 1) ^ (1 - group))
        k = as_matrix(slot(k_buffer, this, STAGES)).permute((1, 0))
        zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, scores_layout)
        scores = hopper.warpgroup_mma(q, k, zeros, use_acc=False, is_async=True)
        mbarrier.wait(slot(v_full, before, STAGES), before // STAGES & 1)
        acc = hopper.warpgroup_mma(p, as_matrix(slot(v_buffer, before, STAGES)), acc, is_async=True)
        if ALTERNATE:
            mbarrier.arrive(go.index(1 - group))
            steps += 1
        scores = hopper.warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(slot(k_empty, this, STAGES))
        new_p, maximum, denominator, rescale = softmax_step(
            scores, maximum, denominator, scale, rows, (count - 1 - i) * BLOCK_N, S, T, right, BLOCK_N, MASKED
        )
        new_p = gl.convert_layout(new_p.to(q.dtype), p.type.layout)
        # This wait is a loop, past which ptxas moves no softmax; it would move it past the one for the product.
        mbarrier.wait(slot(k_full, this + 1, STAGES), (this + 1) // STAGES & 1, pred=i + 1 < count)
        acc, p = hopper.warpgroup_mma_wait(0, deps=(acc, p))
        mbarrier.arrive(slot(v_empty, before, STAGES))
        acc = acc * gl.convert_layout(rescale, row_layout)[:, None]
        p = new_p
    return acc, p, maximum, denominator, steps


@gluon.jit
def compute(
    group, out_descriptor, lse, buffers, barriers, sizes, scale,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PERSISTENT: gl.constexpr, ALTERNATE: gl.constexpr,
):  # fmt: skip
    """A warp group that computes rows 64 · group ... of each tile."""
    q_buffer, k_buffer, v_buffer, out_buffer = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, _go = barriers
    heads, batch, tiles, S, T, right = sizes
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    q = as_matrix(q_buffer.index(group))
    taken = 0
    used = 0
    steps = 0
    for turn in range(turns(tiles, heads * batch, PERSISTENT)):
        tile, head_in_all, exists = tile_of_turn(turn, tiles, PERSISTENT)
        if exists:
            first_row = (tile * GROUPS + group) * ROWS
            rows = first_row + gl.arange(0, ROWS, layout=row_layout)
            count, masked = key_tiles(tile * GROUPS * ROWS, S, T, right, BLOCK_N)

            # The first tile of keys: there are no probabilities yet to multiply with values.
            mbarrier.wait(q_full.index(group), taken & 1)
            mbarrier.wait(slot(k_full, used, STAGES), used // STAGES & 1)
            zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, scores_layout)
            k = as_matrix(slot(k_buffer, used, STAGES)).permute((1, 0))
            scores = hopper.warpgroup_mma(q, k, zeros, use_acc=False)
            mbarrier.arrive(slot(k_empty, used, STAGES))
            maximum = gl.full([ROWS], -INF, gl.float32, row_layout)
            denominator = gl.zeros([ROWS], gl.float32, row_layout)
            p, maximum, denominator, _rescale = softmax_step(
                scores, maximum, denominator, scale, rows, (count - 1) * BLOCK_N, S, T, right, BLOCK_N, True
            )
            p = gl.convert_layout(p.to(q.dtype), gl.DotOperandLayout(0, out_layout, 2))
            acc = gl.zeros([ROWS, D], gl.float32, out_layout)
            mbarrier.wait(slot(k_full, used + 1, STAGES), (used + 1) // STAGES & 1, pred=count > 1)

            state = (acc, p, maximum, denominator, steps)
            state = attend_keys(
                state, 1, masked, count, used, group, q, buffers, barriers, rows, S, T, right, scale,
                BLOCK_N, STAGES, True, ALTERNATE,
            )  # fmt: skip
            state = attend_keys(
                state, masked, count, count, used, group, q, buffers, barriers, rows, S, T, right, scale,
                BLOCK_N, STAGES, False, ALTERNATE,
            )  # fmt: skip
            acc, p, maximum, denominator, steps = state
            mbarrier.arrive(q_empty.index(group))
            last = used + count - 1
            mbarrier.wait(slot(v_full, last, STAGES), last // STAGES & 1)
            acc = hopper.warpgroup_mma(p, as_matrix(slot(v_buffer, last, STAGES)), acc)
            mbarrier.arrive(slot(v_empty, last, STAGES))
            taken += 1
            used += count

            empty = denominator == 0.0
            denominator = gl.where(empty, 1.0, denominator)
            row_lse = gl.where(empty, -INF, (maximum + gl.log2(denominator)) * LN_2)
            gl.store(lse + head_in_all.to(gl.int64) * S + rows, row_lse, mask=rows < S)
            acc = acc * gl.convert_layout(1.0 / denominator, gl.SliceLayout(1, out_layout))[:, None]
            tma.store_wait(0)  # The rows before these have left the buffer.
            as_matrix(out_buffer.index(group)).store(acc.to(q.dtype))
            hopper.fence_async_shared()
            place = [head_in_all // heads, head_in_all % heads, first_row, 0]
            copy_out(out_descriptor, place, out_buffer.index(group))
    tma.store_wait(0)


@gluon.jit
def barriers_of(count: gl.constexpr, arrivals: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit
def tiles_of(count: gl.constexpr, descriptor):
    return gl.allocate_shared_memory(descriptor.dtype, [count] + descriptor.block_type.shape, descriptor.layout)


@gluon.jit(do_not_specialize=["heads", "batch", "tiles", "S", "T", "right"])
def forward_hopper_kernel(
    q, k, v, out, lse, heads, batch, tiles, S, T, right, scale: gl.float32,
    GROUP: gl.constexpr, D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    PERSISTENT: gl.constexpr, ALTERNATE: gl.constexpr,
):  # fmt: skip
    buffers = (tiles_of(GROUPS, q), tiles_of(STAGES, k), tiles_of(STAGES, v), tiles_of(GROUPS, q))
    barriers = (
        barriers_of(GROUPS, 1), barriers_of(GROUPS, 1),  # queries: full, empty
        barriers_of(STAGES, 1), barriers_of(STAGES, GROUPS),  # keys
        barriers_of(STAGES, 1), barriers_of(STAGES, GROUPS),  # values
        barriers_of(GROUPS, 1),  # whose turn it is to start products
    )  # fmt: skip
    sizes = (heads, batch, tiles, S, T, right)
    gl.warp_specialize(
        [
            (compute, (0, out, lse, buffers, barriers, sizes, scale, D, BLOCK_N, STAGES, PERSISTENT, ALTERNATE)),
            (compute, (1, out, lse, buffers, barriers, sizes, scale, D, BLOCK_N, STAGES, PERSISTENT, ALTERNATE)),
            (load, ((q, k, v), buffers, barriers, sizes, GROUP, BLOCK_N, STAGES, PERSISTENT)),
        ],
        WORKER_WARPS,
        WORKER_REGISTERS,
    )  # fmt: skip


def computes(chip, q, k, v):
    """Whether ``launch_warp_groups`` takes these tensors on this chip. An expanded dimension has no descriptor."""
    apart = all(stride for x in (q, k, v) for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1)
    fits = q.shape[3] in STAGES_OF_WIDTH and q.element_size() == 2 and q.numel() > 0 and k.shape[2] > 0
    return chip.capability == 90 and fits and apart


def describe(x, rows):
    """For copies of some rows of x (B, H, S, D) at a time."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    strides = [stride if size > 1 else x.shape[3] for size, stride in zip(x.shape, x.stride(), strict=True)]
    block = [1, 1, rows, x.shape[3]]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)  # The same for bfloat16.
    return TensorDescriptor(x, list(x.shape), [*strides[:3], 1], block, layout)


def launch_warp_groups(chip, q, k, v, out, lse, scale, right, alternate):
    """q and out (B, H, S, D), k and v (B, K, T, D), lse (B, H, S)."""
    B, H, S, D = q.shape
    T = k.shape[2]
    assert computes(chip, q, k, v), f"no warp groups for {tuple(q.shape)} {q.dtype}, {T} keys, on {chip}"
    tiles = cdiv(S, GROUPS.value * ROWS.value)
    run(
        forward_hopper_kernel,
        (min(cdiv(tiles, 2) * B * H, chip.multiprocessors),),
        q,
        describe(q, ROWS.value),
        describe(k, KEYS),
        describe(v, KEYS),
        describe(out, ROWS.value),
        lse,
        H,
        B,
        tiles,
        S,
        T,
        right,
        scale * LOG2_E.value,
        GROUP=H // k.shape[1],
        D=D,
        BLOCK_N=KEYS,
        STAGES=STAGES_OF_WIDTH[D],
        PERSISTENT=True,
        ALTERNATE=alternate,
        num_warps=4,
        maxnreg=REGISTERS,
    )
