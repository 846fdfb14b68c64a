"""The Triton kernels of ``activation``: what they compute is written there."""

from ..frame._triton import tl, triton

# tl.constexpr: Triton refuses to read other globals. They stand right of a tensor: the interpreter cannot multiply
# a constexpr by a tensor.
SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
DENSITY: tl.constexpr = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2π)
TANH_SCALE: tl.constexpr = tl.constexpr(0.7978845608028654)  # sqrt(2 / π)
TANH_CUBIC: tl.constexpr = tl.constexpr(0.044715)


@triton.jit
def _tanh_gate(x):
    """(1 + tanh(u)) / 2 = sigmoid(2u), which keeps its digits where tanh(u) is close to −1."""
    return tl.sigmoid((x + x * x * x * TANH_CUBIC) * (2.0 * TANH_SCALE))


@triton.jit
def activate(x, KIND: tl.constexpr):
    """act(x) of each kind, float32; see ``reference.ACTIVATIONS``."""
    if KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    else:
        y = x * _tanh_gate(x)
    return y


@triton.jit
def slope_of(x, KIND: tl.constexpr):
    """d act(x) / dx."""
    if KIND == "silu":
        gate = tl.sigmoid(x)
        slope = gate * (1.0 + x * (1.0 - gate))
    elif KIND == "gelu":
        slope = 0.5 * (1.0 + tl.erf(x * SQRT_HALF)) + x * DENSITY * tl.exp(-0.5 * x * x)
    else:
        gate = _tanh_gate(x)
        # Beyond, gate · (1 − gate) is 0, and x² may be infinite.
        near = tl.minimum(tl.maximum(x, -30.0), 30.0)
        steepness = (1.0 + near * near * (3.0 * TANH_CUBIC)) * (2.0 * TANH_SCALE)
        slope = gate + near * gate * (1.0 - gate) * steepness
    return slope


@triton.jit
def _place(columns, BLOCK: tl.constexpr):
    """The row of a program, and its columns in it."""
    blocks = tl.cdiv(columns, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    start = (tl.program_id(0).to(tl.int64) % blocks) * BLOCK
    return row, start + tl.arange(0, BLOCK)


@triton.jit
def gated_forward(
    gate, up, out, columns: tl.int64, gate_stride: tl.int64, up_stride: tl.int64,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _place(columns, BLOCK)
    mask = column < columns
    g = tl.load(gate + row * gate_stride + column, mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask, other=0.0).to(tl.float32)
    y = activate(g, KIND) * u
    tl.store(out + row * columns + column, y.to(out.dtype.element_ty), mask)


@triton.jit
def gated_backward(
    grad, gate, up, grad_gate, grad_up, columns: tl.int64, gate_stride: tl.int64, up_stride: tl.int64,
    grad_stride: tl.int64, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _place(columns, BLOCK)
    mask = column < columns
    g = tl.load(gate + row * gate_stride + column, mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask, other=0.0).to(tl.float32)
    d = tl.load(grad + row * columns + column, mask, other=0.0).to(tl.float32)
    to_gate = d * u * slope_of(g, KIND)
    to_up = d * activate(g, KIND)
    tl.store(grad_gate + row * grad_stride + column, to_gate.to(grad_gate.dtype.element_ty), mask)
    tl.store(grad_up + row * grad_stride + column, to_up.to(grad_up.dtype.element_ty), mask)


@triton.jit
def gelu_forward(
    x, bias, out, columns: tl.int64, x_stride: tl.int64, KIND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, column = _place(columns, BLOCK)
    mask = column < columns
    value = tl.load(x + row * x_stride + column, mask, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + column, mask, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, activate(value, KIND).to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows"])
def gelu_backward(
    grad, x, bias, grad_x, bias_partials, rows: tl.int64, columns: tl.int64, x_stride: tl.int64,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (j, i) takes the rows i, i + programs, ... of column block j, and adds up the bias' gradient."""
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    shift = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        shift = tl.load(bias + column, mask, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(1).to(tl.int64), rows, tl.num_programs(1)):
        value = tl.load(x + row * x_stride + column, mask, other=0.0).to(tl.float32) + shift
        d = tl.load(grad + row * columns + column, mask, other=0.0).to(tl.float32)
        d *= slope_of(value, KIND)
        tl.store(grad_x + row * columns + column, d.to(grad_x.dtype.element_ty), mask)
        total += d
    if bias_partials is not None:
        tl.store(bias_partials + tl.program_id(1).to(tl.int64) * columns + column, total, mask)
