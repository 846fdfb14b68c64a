"""How rows of published datasets become questions: texts are put together as in EleutherAI's lm-evaluation-harness.

Most tasks also read the rows of MosaicML's llm-foundry, ``{query, choices, gold}``, which hold finished texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmfast.evaluation.tasks.rows import Row


@dataclass(frozen=True)
class Question:
    """Answers to choose between. A model scores ``" " + answers[i]`` after ``prompts[i]``."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    label: int
    """Which answer is right, from 0."""

    @property
    def solved(self) -> str:
        """The question with its right answer, as it stands among examples in a prompt."""
        return f"{self.prompts[self.label]} {self.answers[self.label]}"

    @property
    def turn(self) -> tuple[str, str]:
        """What a user says and what an assistant answers, as an example in a conversation."""
        return self.prompts[self.label], self.answers[self.label]


def hellaswag(row: Row) -> Question:
    """HellaSwag as the harness and most papers report it, without what WikiHow's pages left in the texts."""
    if "query" in row:
        return _queried(row)
    prompt = f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
    endings = tuple(map(_clean, row.texts("endings")))
    return _one_prompt(_clean(prompt), endings, row.label("label", len(endings)))


def hellaswag_plain(row: Row) -> Question:
    """HellaSwag with the texts of its ``ctx`` and ``endings`` as they are, and no title."""
    endings = row.texts("endings")
    return _one_prompt(row.text("ctx"), endings, row.label("label", len(endings)))


def piqa(row: Row) -> Question:
    """PIQA: which of two ways reaches a goal?"""
    if "query" in row:
        return _queried(row, "\nAnswer:")
    answers = (row.text("sol1"), row.text("sol2"))
    return _one_prompt(f"Question: {row.text('goal')}\nAnswer:", answers, row.label("label", 2))


def arc(row: Row) -> Question:
    """ARC: science questions of school examinations, in the form of its authors' files or of the hub."""
    if "query" in row:
        return _queried(row, "\nAnswer:")
    asked = row.value("question")
    outer = Row(asked, f"{row.where}, question") if isinstance(asked, dict) else row
    question, choices = outer.text("question" if outer is row else "stem"), outer.value("choices")
    if isinstance(choices, list) and all(isinstance(each, dict) for each in choices):
        choices = {name: [each.get(name) for each in choices] for name in ("text", "label")}
    if not isinstance(choices, dict):
        raise ValueError(f"{outer.where}: choices must have the lists text and label, got {choices!r}")
    inner = Row(choices, f"{outer.where}, choices")
    answers, labels = inner.texts("text"), inner.texts("label")
    key = row.text("answerKey")
    if key not in labels or len(labels) != len(answers):
        raise ValueError(f"{row.where}: answerKey {key!r} is not one of the {len(answers)} choices {list(labels)}")
    return _one_prompt(f"Question: {question}\nAnswer:", answers, labels.index(key))


def copa(row: Row) -> Question:
    """COPA: which is the cause, or the effect?"""
    if "query" in row:
        return _queried(row)
    connectors = {"cause": "because", "effect": "therefore"}
    kind = row.text("question")
    if kind not in connectors:
        raise ValueError(f"{row.where}: question must be cause or effect, got {kind!r}")
    answers = tuple(choice[:1].lower() + choice[1:] for choice in (row.text("choice1"), row.text("choice2")))
    return _one_prompt(f"{row.text('premise').strip()[:-1]} {connectors[kind]}", answers, row.label("label", 2))


def winogrande(row: Row) -> Question:
    """Winogrande with partial evaluation: the same ending is scored after each of two names put in the blank."""
    if "context_options" in row:
        prompts = row.texts("context_options")
        ending = row.text("continuation")
        return Question(prompts, (ending,) * len(prompts), row.label("gold", len(prompts)))
    before, blank, after = row.text("sentence").partition("_")
    if not blank:
        raise ValueError(f"{row.where}: sentence has no blank (_) to fill")
    prompts = (before + row.text("option1"), before + row.text("option2"))
    return Question(prompts, (after.strip(),) * 2, row.label("answer", 2, first=1))


def mmlu(row: Row) -> Question:
    """MMLU: the letter of one of four answers that stand in the prompt."""
    choices = row.texts("choices")
    letters = tuple("ABCDEFGHIJ"[: len(choices)])
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return _one_prompt(f"{row.text('question').strip()}{listed}\nAnswer:", letters, row.label("answer", len(choices)))


def boolq(row: Row) -> Question:
    """BoolQ: yes or no, by a passage."""
    if "query" in row:
        return _queried(row, "\nAnswer:")
    label = row.label("label" if "label" in row else "answer", 2)
    return _one_prompt(f"{row.text('passage')}\nQuestion: {row.text('question')}?\nAnswer:", ("no", "yes"), label)


def lambada(row: Row) -> Question:
    """LAMBADA: the last word of a text, the only answer there is."""
    if "continuation" in row:
        return Question((row.text("context"),), (row.text("continuation"),), 0)
    before, space, word = row.text("text").rpartition(" ")
    if not space or not word:
        raise ValueError(f"{row.where}: text must end with a word after a space")
    return Question((before,), (word,), 0)


def _queried(row: Row, cue: str = "") -> Question:
    answers = row.texts("choices")
    return _one_prompt(row.text("query").rstrip() + cue, answers, row.label("gold", len(answers)))


def _one_prompt(prompt: str, answers: tuple[str, ...], label: int) -> Question:
    return Question((prompt,) * len(answers), answers, label)


def _clean(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
