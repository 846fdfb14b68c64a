"""Arithmetic from text by its syntax tree: what a model writes is parsed, never evaluated as code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

MAX_CHARACTERS, MAX_EXPONENT, LARGEST = 200, 64, 1e18

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(text: str) -> float | int:
    """The value of an expression of numbers with + − * / // % ** and parentheses; ``,`` inside numbers is left out.

    >>> calculate("2 * (3 + 4)"), calculate("1,200 / 5"), calculate("9 / 2")
    (14, 240, 4.5)

    Raises:
        ValueError: anything else, a division by 0, or numbers that are too large.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an expression of {len(text)} characters is too long")
    try:
        tree = ast.parse(text.replace(",", "").replace("×", "*").replace("÷", "/").strip(), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"{text!r} cannot be calculated: {error}") from None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value(node: ast.expr) -> float | int:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _checked(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > MAX_EXPONENT:
            raise ValueError(f"the exponent {right} is too large")
        return _checked(_BINARY[type(node.op)](left, right))
    raise ValueError(f"{ast.unparse(node)!r} is no arithmetic")


def _checked(value: float | int | complex) -> float | int:
    if isinstance(value, complex) or not abs(value) <= LARGEST:
        raise ValueError("a number is too large, or not real")
    return value
