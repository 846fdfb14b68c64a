"""Launch choices that a measurement decided, before the rules in code.

``python -m benchmarks tune OP`` in a clone times launch choices on the GPU at hand and writes ``tables/OP.json``: for a
launch function, a capability and the function's other arguments, the choice that was fastest there, with the times
that say so. Without such a row the function itself chooses.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import Any

from .launch import Chip
from .plan import forget_plans

TABLES = Path(__file__).parent.parent / "tables"


class Tuned:
    """A launch function ``rule(device, *arguments)`` whose answer a row of ``tables/OP.json`` takes the place of.

    Args:
        op: the table's name.
        choice: the dataclass of a choice.
        rule: answers where the table has no row.
    """

    def __init__(self, op: str, choice: type, rule: Callable[..., Any]):
        self.op, self.choice, self.rule = op, choice, rule
        self.rows = {
            (row["capability"], *row["arguments"]): choice(**row["choice"])
            for row in _table(op)
            if row["function"] == rule.__name__
        }
        update_wrapper(self, rule)

    @contextmanager
    def forced(self, key: tuple[Any, ...], choice: Any) -> Iterator[None]:
        """Makes it answer this, as if its table said so: what tries choices."""
        before = self.rows.copy()
        self.rows[key] = choice
        forget_plans()
        try:
            yield
        finally:
            self.rows = before
            forget_plans()

    def __call__(self, device: Chip, *arguments: Any) -> Any:
        return self.rows.get((device.capability, *arguments)) or self.rule(device, *arguments)


def tuned(op: str, choice: type) -> Callable[[Callable], Tuned]:
    """``Tuned`` as a decorator."""
    return lambda rule: Tuned(op, choice, rule)


@lru_cache
def _table(op: str) -> list[dict[str, Any]]:
    path = TABLES / f"{op}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
