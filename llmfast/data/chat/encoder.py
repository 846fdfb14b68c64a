"""From conversations to tokens, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from llmfast.data.chat.conversation import Conversation, Message
from llmfast.data.chat.guard import Guard
from llmfast.data.chat.template import ChatTemplate
from llmfast.tokenizer import Tokenizer

Trained = Literal["answers", "last", "everything"]
"""answers: what the assistant says, in all its turns; last: in the last one; everything: the whole text."""

Span = tuple[int, int]
_PROBE = ("What is two plus two?", "Four.", "And three plus three?", "Six.")


class Encoded(NamedTuple):
    """A conversation as tokens."""

    tokens: list[int]
    trained: list[bool]
    """Of each token, whether it is trained: predicted from those before it, and counted in the loss."""


class ChatEncoder:
    """Renders conversations by a template and turns them into tokens.

    The tokens of a conversation begin with exactly those of the prompt that an answer is generated from: the text is
    cut where an answer begins, and each part is encoded by itself. The template alone says which special tokens there
    are; no others are added. What people wrote never becomes one (see ``Guard``).

    The template is checked first: what it renders of a conversation up to an answer must be how it renders the whole,
    and a special token must end each answer, or a model could not learn to stop.

    Args:
        tokenizer: which has the special tokens that the template writes.
        template: as above.

    Raises:
        ValueError: a template that cannot be trained with, or a tokenizer that changes the text of templates.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
        self.tokenizer, self.template = tokenizer, template
        self._guard = Guard(frozenset(tokenizer.special_tokens_set), template.source)
        question, answer, again, last = _PROBE
        probe = (_user(question), _assistant(answer), _user(again), _assistant(last))
        single, several = Conversation(probe[:2]), Conversation(probe)
        text = template.render(single.messages)
        self._end_text: str | None = None
        (span,) = self._spans(single).values()
        if span is None:
            raise ValueError(self._not_a_prefix("choose"))
        self.end_token = self._check_end(text[slice(*span)], answer)
        """The special token that ends an answer."""
        self._end_text = tokenizer.decode([self.end_token])
        self.keeps_turns = all(self._spans(several).values())
        """Whether earlier turns are rendered as when they were the last, so that all of them can be trained at once."""
        if tokenizer.decode(self._tokens(text, "")) != text:
            raise ValueError(
                f"the tokenizer changes what the chat template {template.name} renders (it normalizes text, or adds "
                "spaces), so that an answer would not begin where its prompt ends"
            )

    def encode(self, conversation: Conversation, trained: Trained = "answers") -> Encoded:
        """Tokens of a conversation that has an answer. What comes after the last token that is trained is left out.

        Raises:
            ValueError: the template refuses the conversation, or renders earlier turns otherwise than later ones.
        """
        places = conversation.answers
        assert places, "a conversation without an answer"
        if trained == "everything":
            found, marks = self._guard.guarded(conversation)
            text = self.template.render(found.messages, found.tools)
            self._check_tools(text, found)
            tokens = self._tokens(text, marks)
            return Encoded(tokens, [True] * len(tokens))
        conversation = Conversation(conversation.messages[: places[-1] + 1], conversation.tools)
        found, marks = self._guard.guarded(conversation)
        spans = self._spans(found, marks)
        wanted = places if trained == "answers" else places[-1:]
        if any(spans[place] is None for place in wanted):
            raise ValueError(
                self._not_a_prefix("choose" if len(wanted) == 1 else "set data.trained to last, or choose")
            )
        text = self.template.render(found.messages, found.tools)
        self._check_tools(text, found)
        parts = self._parts(text, spans, marks)
        tokens = [token for _, ids in parts for token in ids]
        flags = [place in wanted for place, ids in parts for _ in ids]
        stop = max((place for place, flag in enumerate(flags) if flag), default=-1) + 1
        return Encoded(tokens[:stop], flags[:stop])

    def prompt(self, conversation: Conversation) -> list[int]:
        """Tokens up to where the assistant's next answer begins.

        Raises:
            ValueError: the template refuses the conversation.
        """
        found, marks = self._guard.guarded(conversation)
        text = self.template.render(found.messages, found.tools, generation_prompt=True)
        return [token for _, ids in self._parts(text, self._spans(found, marks), marks) for token in ids]

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """As ``prompt``, of messages without tools."""
        return self.prompt(Conversation(tuple(messages)))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens after which an answer, or a document, is over."""
        return frozenset({self.end_token, self.tokenizer.eot_token})

    # --- where answers are -------------------------------------------------------------------------------------------

    def _spans(self, conversation: Conversation, marks: str = "") -> dict[int, Span | None]:
        """Where each answer is in the rendered text, up to the special token that ends it.

        None for one that the template renders, with what comes before it, otherwise than in the whole conversation.
        """
        messages, tools = conversation.messages, conversation.tools
        whole = self.template.render(messages, tools)
        spans: dict[int, Span | None] = {}
        for place in conversation.answers:
            prompt = self.template.render(messages[:place], tools, generation_prompt=True)
            answered = self.template.render(messages[: place + 1], tools)
            start = len(prompt)
            stop = start + self._length(answered[start:], marks)
            is_prefix = answered.startswith(prompt) and whole.startswith(answered[:stop])
            spans[place] = (start, stop) if is_prefix else None
        return spans

    def _length(self, rendered: str, marks: str) -> int:
        """Where a rendered answer is over: behind the token that ends answers, or else its last special token."""
        tokens = list(self._guard.tokens(rendered, marks))
        ends = [end for start, end in tokens if rendered[start:end] == self._end_text] or [end for _, end in tokens]
        return ends[-1] if ends else len(rendered)

    def _not_a_prefix(self, advice: str) -> str:
        return (
            f"the chat template {self.template.name} is not prefix-preserving: it renders the messages up to an answer "
            f"otherwise than in the whole conversation; {advice} another data.template"
        )

    def _check_tools(self, text: str, conversation: Conversation) -> None:
        """Check that tools and their calls are in the rendered text: templates made without them leave them out."""
        functions = [tool.get("function", tool) for tool in conversation.tools]
        functions += [call["function"] for each in conversation.messages for call in each.get("tool_calls", ())]
        for name in {str(function.get("name", "")) for function in functions}:
            if name not in text:
                raise ValueError(f"the chat template {self.template.name} leaves out the tool {name!r}: chatml has it")

    def _check_end(self, rendered: str, answer: str) -> int:
        """The token that ends a rendered answer."""
        start = rendered.find(answer)
        if start < 0:
            raise ValueError(f"the chat template {self.template.name} does not render what the assistant says")
        behind = start + len(answer)
        for begin, end in self._guard.tokens(rendered[behind:], ""):
            return self.tokenizer.encode_single_token(rendered[behind:][begin:end])
        raise ValueError(
            f"the chat template {self.template.name} ends answers without a special token of the tokenizer, so that "
            "generation would never stop"
        )

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _parts(self, text: str, spans: dict[int, Span | None], marks: str) -> list[tuple[int | None, list[int]]]:
        """The rendered text cut at its answers, as (place of the answer, or None; tokens)."""
        parts: list[tuple[int | None, list[int]]] = []
        end = 0
        for place, span in spans.items():
            if span is not None:
                start, stop = span
                parts += [(None, self._tokens(text[end:start], marks)), (place, self._tokens(text[start:stop], marks))]
                end = stop
        return [*parts, (None, self._tokens(text[end:], marks))]

    def _tokens(self, text: str, marks: str) -> list[int]:
        """A part of the rendered text."""
        if not any(mark in text for mark in marks):
            return self.tokenizer.encode(text, allowed_special="all")
        tokens: list[int] = []
        for piece, is_special in self._guard.pieces(text, marks):
            if is_special:
                tokens.append(self.tokenizer.encode_single_token(piece))
            else:
                tokens += self.tokenizer.encode_ordinary(piece)
        return tokens


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
