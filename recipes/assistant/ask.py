"""Asks finished assistants questions that were held out of their training:

    python ask.py QUESTIONS.jsonl FOLDER RUN ...

FOLDER/answers.json has the share of exactly right answers by run and kind of question, and the answers to the first
questions of each kind. Every answer is the likeliest one.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llmfast.data.chat.opening import saved_chat
from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine

LONGEST = 60  # tokens of an answer
SHOWN = {"talk": 2, "functions": 5, "unknown": 1, "digits": 1}


def answers_of(run: Path, questions: Sequence[str]) -> list[str]:
    """What a run answers to each question."""
    engine = Engine.open(run)
    chat = saved_chat(engine.tokenizer)
    prompts = [chat.prompt_of([{"role": "user", "content": text}]) for text in questions]
    sampling = Sampling(temperature=0.0, max_tokens=LONGEST, stop_tokens=(chat.end_token,))
    return [replies[0].text.strip() for replies in engine.generate(prompts, sampling)]


def main(file: Path, folder: Path, runs: Sequence[Path]) -> None:
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    given = {run.name: answers_of(run, [each["instruction"] for each in records]) for run in runs}
    places = {kind: [place for place, each in enumerate(records) if each["kind"] == kind] for kind in SHOWN}
    right = [
        {"stage": name, "questions": len(records)}
        | {
            kind: sum(answers[place] == records[place]["output"] for place in chosen) / len(chosen)
            for kind, chosen in places.items()
        }
        for name, answers in given.items()
    ]
    shown = [
        {"question": records[place]["instruction"]} | {name: answers[place] for name, answers in given.items()}
        for kind, chosen in places.items()
        for place in chosen[: SHOWN[kind]]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"right": right, "shown": shown}, ensure_ascii=False, indent=1)
    (folder / "answers.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
