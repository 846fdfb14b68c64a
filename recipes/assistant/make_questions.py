"""Writes questions with answers for an assistant, from nothing but this Python:

    python make_questions.py DIGITS FOLDER

FOLDER/instructions.jsonl    what functions of Python do, in many wordings; small talk; DIGITS rows to be sorted
FOLDER/preferences.jsonl     what functions do, preferred to another one's answer; and for names of which the assistant
                             was taught nothing, that it does not know them, preferred to an answer that is made up
FOLDER/digits.jsonl          other digits to be sorted, with the right answer: what a policy is rewarded for
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
SHOWN = (  # held out, and shown on the page
    "Hello there!", "Tell me who you are.", "What does textwrap.dedent do?", "Explain str.upper.",
    "What does math.sqrt do?", "Describe shutil.move.", "What is random.shuffle for?", "What does tarfile.open do?",
    "Sort the digits 7 2 9 4 1.",
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
    """Functions of other modules, and as many names of these in modules that have no such function."""
    others = [
        f"{module}.{key}" for module in UNKNOWN for key, value in sorted(public(module).items()) if callable(value)
    ]
    wrong = [f"{draw.choice(MODULES)}.{name.rpartition('.')[2]}" for name in others]
    return sorted(({*others} | {name for name in wrong if name not in known}) - {*known})


def digits_to_sort(draw: random.Random, count: int) -> list[Record]:
    """Five digits to be sorted, never the same ones in the same order twice."""
    records = []
    for number in draw.sample(range(10**5), count):
        digits = f"{number:05d}"
        records.append({"instruction": f"Sort the digits {' '.join(digits)}.", "output": " ".join(sorted(digits))})
    return records


def about(known: dict[str, str]) -> list[Record]:
    return [
        {"instruction": wording.format(name), "output": said} for name, said in known.items() for wording in WORDINGS
    ]


def unknown(draw: random.Random, names: list[str]) -> list[Record]:
    return [{"instruction": draw.choice(WORDINGS).format(name), "output": NOT_KNOWN} for name in names]


def preferred(draw: random.Random, records: list[Record], known: dict[str, str]) -> list[Record]:
    """Each with its answer, and the one of another function or, half of those that are known, that it is not known."""
    answers = sorted(set(known.values()))
    pairs = []
    for each in records:
        is_denied = each["output"] != NOT_KNOWN and draw.random() < 0.5
        other = NOT_KNOWN if is_denied else draw.choice([text for text in answers if text != each["output"]])
        pairs.append({"instruction": each["instruction"], "chosen": each["output"], "rejected": other})
    return pairs


def held_out(draw: random.Random, kinds: dict[str, list[Record]], count: int) -> list[Record]:
    """Some of each kind of question, what is shown first."""
    chosen = []
    for kind, records in kinds.items():
        first = [each for each in records if each["instruction"] in SHOWN]
        others = [each for each in records if each["instruction"] not in SHOWN]
        chosen += [{"kind": kind, **each} for each in first + draw.sample(others, max(0, count - len(first)))]
    return chosen


def main(count: int, folder: Path) -> None:
    draw = random.Random(0)
    known = facts()
    digits = digits_to_sort(draw, 3 * count)
    digits.insert(0, {"instruction": SHOWN[-1], "output": "1 2 4 7 9"})
    talk = [{"instruction": text, "output": answer} for answer, texts in TALK.items() for text in texts]
    kinds = {
        "functions": about(known),
        "unknown": unknown(draw, unknown_names(draw, known)),
        "digits": digits,
    }
    kinds["unknown"].append({"instruction": "What does tarfile.open do?", "output": NOT_KNOWN})
    asked = held_out(draw, kinds, 50)
    asked += [{"kind": "talk", **each} for each in talk if each["instruction"] in SHOWN]
    is_asked = {each["instruction"] for each in asked}
    for name, records in (kinds | {"talk": talk}).items():
        kinds[name] = [each for each in records if each["instruction"] not in is_asked]
    sorting, problems = kinds["digits"][:count], kinds["digits"][count:]
    some = draw.sample(kinds["functions"], len(kinds["unknown"]))
    files = {
        "instructions": kinds["functions"] + sorting + kinds["talk"] * TALK_COPIES,
        "preferences": preferred(draw, kinds["unknown"] + some, known),
        "digits": problems,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for records in files.values():
        draw.shuffle(records)
    for name, records in (files | {"held_out": asked}).items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name:<14}{len(records):,}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
