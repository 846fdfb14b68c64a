"""Writes questions with answers for an assistant, from nothing but this Python:

    python make_questions.py DIGITS FOLDER

FOLDER/instructions.jsonl    what functions of Python do, in many wordings; small talk; DIGITS rows of sorted digits,
                             half of them from the largest down
FOLDER/preferences.jsonl     the same questions with the answer preferred to another one; and for names of which the
                             assistant was taught nothing, that it does not know them, preferred to one that is made up
FOLDER/digits.jsonl          other digits to be sorted, from the smallest up: what a policy is rewarded for
FOLDER/held_out.jsonl        questions of every kind that are in none of the others
"""

import builtins
import importlib
import inspect
import json
import random
import re
import sys
from pathlib import Path

TYPES = (str, bytes, list, tuple, dict, set, int, float)
MODULES = (
    "math", "random", "textwrap", "shutil", "os.path", "heapq", "bisect", "statistics", "json", "itertools",
    "functools", "collections", "glob", "tempfile", "secrets", "base64",
)  # fmt: skip
UNKNOWN = (  # modules that the assistant is not taught
    "argparse", "ast", "asyncio", "calendar", "codecs", "configparser", "csv", "difflib", "email.utils", "gettext",
    "http.cookies", "inspect", "ipaddress", "locale", "logging", "mailbox", "mimetypes", "pathlib", "pickle",
    "platform", "sched", "shlex", "signal", "socket", "sqlite3", "ssl", "string", "struct", "subprocess", "sysconfig",
    "tarfile", "threading", "timeit", "trace", "traceback", "types", "urllib.parse", "uuid", "warnings", "weakref",
    "zipfile",
)  # fmt: skip
LONGEST = 100  # characters of an answer
WORDINGS = (
    "What does {} do?", "What is {} for?", "Explain {}.", "Describe {}.", "Tell me what {} does.",
    "What does the function {} do?", "Please explain {}.", "Do you know what {} does?", "{}?", "What is {}?",
)  # fmt: skip
NOT_KNOWN = "I do not know that one."
TALK = {
    "Hello! Ask me what a function of Python does, or give me digits to sort.": (
        "Hello!", "Hi!", "Hello.", "Hi.", "Hey!", "Good morning!", "Good evening!", "Hi there!", "Hello there!",
    ),
    "I am a small language model that has read the documentation of Python.": (
        "Who are you?", "What are you?", "What is your name?", "Are you a person?", "Tell me about yourself.",
        "Introduce yourself.", "Tell me who you are.",
    ),
    "I can say what functions of Python do, and sort digits.": (
        "What can you do?", "What do you know?", "How can you help me?", "What can I ask you?", "Help me.", "Help!",
        "Tell me what you can do.",
    ),
    "You are welcome.": ("Thank you!", "Thanks!", "Thank you.", "Thanks.", "Thanks a lot!", "Many thanks!"),
    "Goodbye!": ("Goodbye!", "Bye!", "Goodbye.", "Bye.", "See you!", "See you later!"),
}  # fmt: skip
TALK_COPIES = 8
UNKNOWN_NAME = "tarfile.open"
HELD_OUT = 50  # questions of each kind
SHOWN = (  # held out, and shown on the page
    "What does textwrap.dedent do?", "Explain str.upper.", "What does math.sqrt do?", "Describe shutil.move.",
    "What is random.shuffle for?", f"What does {UNKNOWN_NAME} do?", "Sort the digits 7 2 9 4 1.",
)  # fmt: skip
Record = dict[str, str]


def facts() -> dict[str, str]:
    """Functions and methods that the assistant is taught, with the first sentence of what each says about itself."""
    found = {f"{kind.__name__}.{name}": value for kind in TYPES for name, value in vars(kind).items()}
    found |= {name: value for name, value in vars(builtins).items() if not isinstance(value, type)}
    for name in MODULES:
        found |= {f"{name}.{key}": value for key, value in public(name).items()}
    said = {name: first_sentence(inspect.getdoc(value) or "") for name, value in found.items() if callable(value)}
    return {
        name: text for name, text in sorted(said.items()) if text and "_" not in (name[0], name.rpartition(".")[2][0])
    }


def public(name: str) -> dict[str, object]:
    """What a module offers."""
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
    return {key: getattr(module, key) for key in offered}


def first_sentence(text: str) -> str:
    """The first sentence of a docstring on one line; empty where it is none, or a long one."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    found = re.match(r"[A-Z].{8,}?[.](?= |$)", paragraph)
    return found.group() if found and len(found.group()) <= LONGEST and "(" not in found.group() else ""


def unknown_names(draw: random.Random, known: dict[str, str]) -> list[str]:
    """What other modules define, and as many of these names in modules that have no such function."""
    others = [
        f"{module}.{name}"
        for module in UNKNOWN
        for name, value in sorted(public(module).items())
        if callable(value) and getattr(value, "__module__", None) == module
    ]
    wrong = [f"{draw.choice(MODULES)}.{name.rpartition('.')[2]}" for name in others]
    return sorted({*others, *wrong} - {*known, UNKNOWN_NAME})


def digits_to_sort(draw: random.Random, count: int) -> list[Record]:
    """Five digits to be sorted, never the same ones in the same order twice."""
    records = []
    for number in draw.sample(range(10**5), count):
        digits = f"{number:05d}"
        records.append({"instruction": f"Sort the digits {' '.join(digits)}.", "output": " ".join(sorted(digits))})
    return records


def both_ways(records: list[Record]) -> list[Record]:
    """Every other one sorted from the largest digit down: which way is wanted, the rewards have to say."""
    return [each if place % 2 else each | {"output": each["output"][::-1]} for place, each in enumerate(records)]


def about(known: dict[str, str]) -> list[Record]:
    return [
        {"instruction": wording.format(name), "output": said} for name, said in known.items() for wording in WORDINGS
    ]


def unknown(draw: random.Random, names: list[str]) -> list[Record]:
    return [{"instruction": draw.choice(WORDINGS).format(name), "output": NOT_KNOWN} for name in names]


def preferred(draw: random.Random, records: list[Record], known: dict[str, str]) -> list[Record]:
    """Each with its answer, and that of a function or, for half of those that have an answer, that it is not known."""
    answers = sorted(set(known.values()))
    pairs = []
    for each in records:
        is_denied = each["output"] != NOT_KNOWN and draw.random() < 0.5
        other = NOT_KNOWN if is_denied else draw.choice([text for text in answers if text != each["output"]])
        pairs.append({"instruction": each["instruction"], "chosen": each["output"], "rejected": other})
    return pairs


def questions(draw: random.Random, known: dict[str, str], count: int) -> dict[str, list[Record]]:
    """All questions with their answers, by kind."""
    return {
        "talk": [{"instruction": text, "output": answer} for answer, texts in TALK.items() for text in texts],
        "functions": about(known),
        "unknown": [
            {"instruction": f"What does {UNKNOWN_NAME} do?", "output": NOT_KNOWN},
            *unknown(draw, unknown_names(draw, known)),
        ],
        "digits": [{"instruction": "Sort the digits 7 2 9 4 1.", "output": "1 2 4 7 9"}, *digits_to_sort(draw, count)],
    }


def held_out(draw: random.Random, kinds: dict[str, list[Record]], count: int) -> list[Record]:
    """Some questions of each kind, those that are shown first; of small talk, the last wording for each answer."""
    chosen = [{"kind": "talk", "instruction": texts[-1], "output": answer} for answer, texts in TALK.items()]
    for kind in ("functions", "unknown", "digits"):
        first = [each for each in kinds[kind] if each["instruction"] in SHOWN]
        others = [each for each in kinds[kind] if each["instruction"] not in SHOWN]
        chosen += [{"kind": kind, **each} for each in first + draw.sample(others, count - len(first))]
    return chosen


def main(count: int, folder: Path) -> None:
    draw = random.Random(0)
    known = facts()
    kinds = questions(draw, known, 3 * count)
    asked = held_out(draw, kinds, min(HELD_OUT, count))
    is_asked = {each["instruction"] for each in asked}
    kinds = {kind: [each for each in records if each["instruction"] not in is_asked] for kind, records in kinds.items()}
    sorting, problems = both_ways(kinds["digits"][:count]), kinds["digits"][count:]
    some = draw.sample(kinds["functions"], len(kinds["unknown"]))
    files = {
        "instructions": kinds["functions"] + sorting + kinds["talk"] * TALK_COPIES,
        "preferences": preferred(draw, kinds["unknown"] + some + kinds["talk"] * TALK_COPIES, known),
        "digits": problems,
        "held_out": asked,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        if name != "held_out":
            draw.shuffle(records)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name:<14}{len(records):,}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
