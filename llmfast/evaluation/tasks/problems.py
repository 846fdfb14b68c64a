"""Problems whose answer a model writes out, and how each kind of answer is checked.

Texts are put together, and numbers extracted, as in EleutherAI's lm-evaluation-harness.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmfast.evaluation.answers.sandbox import code_of, run_limited
from llmfast.evaluation.answers.texts import equal_formulas
from llmfast.evaluation.tasks.rows import Row

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclass(frozen=True)
class Problem:
    """What a model is to continue, and what its continuation is compared with."""

    prompt: str
    solution: str
    """How it goes on in an example."""
    answer: str
    """What an answer is checked by."""

    @property
    def solved(self) -> str:
        """The problem with its solution, as it stands among examples in a prompt."""
        return self.prompt + self.solution

    @property
    def turn(self) -> tuple[str, str]:
        """What a user says and what an assistant answers, as an example in a conversation."""
        return self.prompt, self.solution.strip()


def gsm8k(row: Row) -> Problem:
    """GSM8K: word problems of grade school, whose solution ends in ``#### number``."""
    answer = row.text("answer")
    if "####" not in answer:
        raise ValueError(f"{row.where}: answer must end in #### and a number, got {answer[-40:]!r}")
    return Problem(f"Question: {row.text('question')}\nAnswer:", f" {answer}", answer.rpartition("#### ")[2])


def math(row: Row) -> Problem:
    """MATH: problems of competitions, whose answer is a formula."""
    solution = row.text("solution")
    answer = f"${row.text('answer')}$" if "answer" in row else solution
    return Problem(f"Problem:\n{row.text('problem')}\n\nSolution:", f" {solution}", answer)


def humaneval(row: Row) -> Problem:
    """HumanEval: a function to be written by its signature and description."""
    tests = f"{row.text('test')}\ncheck({row.text('entry_point')})\n"
    return Problem(row.text("prompt"), row.text("canonical_solution") if "canonical_solution" in row else "", tests)


def strict_number(problem: Problem, reply: str, chat: bool) -> bool:
    """Whether the first number behind ``####`` is the right one."""
    found = _STRICT.search(reply)
    return found is not None and _normal(found[1]) == _normal(problem.answer)


def flexible_number(problem: Problem, reply: str, chat: bool) -> bool:
    """Whether the last number of a reply is the right one."""
    found = _FLEXIBLE.findall(reply)
    return bool(found) and _normal(found[-1]) == _normal(problem.answer)


def _normal(number: str) -> str:
    return re.sub(r"\.$", "", re.sub(r"[,$]", "", number.strip()))


def equal_answer(problem: Problem, reply: str, chat: bool) -> bool:
    """Whether the answer in a reply is mathematically equal to the right one."""
    return equal_formulas(reply, problem.answer)


def passes_tests(problem: Problem, reply: str, chat: bool) -> bool:
    """Whether the function that a reply completes, or in a conversation the code in it, passes the tests."""
    code = f"\n{code_of(reply)}" if chat else reply
    return run_limited(f"{problem.prompt}{code}\n{problem.answer}") == 0
