"""What a text that a model wrote comes to, and whether that is right."""

from __future__ import annotations

import re

from llmfast.evaluation.answers.calculator import calculate

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def final_answer(text: str) -> str:
    """What an answer comes to: behind the last ``####``, inside the last ``<answer>``, or else the whole text.

    >>> final_answer("2 + 2 = 4\\n#### 4"), final_answer("<think>so</think><answer> 7 </answer>"), final_answer(" 9 ")
    ('4', '7', '9')
    """
    if "<answer>" in text:
        return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    return text.rpartition("####")[2].strip()


def last_number(text: str) -> float | int | None:
    """The last number of a text; None if there is none.

    >>> last_number("3 dogs cost $1,200.")
    1200
    """
    found = _NUMBER.findall(text)
    try:
        return calculate(found[-1]) if found else None
    except ValueError:
        return None


def equal_formulas(found: str, wanted: str) -> bool:
    """Whether the answer in a text equals the one in another mathematically, by math-verify: the last formula in a box
    (``\\boxed``), or else what stands as LaTeX or as a number.

    In whatever thread: math-verify's own time limit works in the main thread alone, and is not used.
    """
    from math_verify import parse, verify

    gold, answer = (parse(each, parsing_timeout=None) for each in (wanted, found))
    return bool(gold) and bool(answer) and bool(verify(gold, answer, timeout_seconds=None))
