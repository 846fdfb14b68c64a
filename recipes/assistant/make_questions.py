"""Writes questions with answers for an assistant, from nothing but this Python:

    python make_questions.py 1000 FOLDER

FOLDER/instructions.jsonl    what functions of the standard library do, and digits to be sorted, with answers
FOLDER/preferences.jsonl     what functions do, with the answer and with that of another function
FOLDER/digits.jsonl          digits to be sorted, with the right answer: what a policy is rewarded for
"""

import importlib
import inspect
import json
import random
import re
import sys
from pathlib import Path

MODULES = (
    "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "cmath", "codecs", "collections",
    "collections.abc", "concurrent.futures", "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime",
    "decimal", "difflib", "dis", "email", "email.message", "email.utils", "enum", "filecmp", "fnmatch", "fractions",
    "functools", "gettext", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "html.parser", "http.client",
    "http.cookies", "http.server", "imaplib", "importlib.metadata", "importlib.util", "inspect", "io", "ipaddress",
    "itertools", "json", "linecache", "locale", "logging", "logging.handlers", "mailbox", "math", "mimetypes",
    "multiprocessing", "ntpath", "operator", "os", "pathlib", "pickle", "pickletools", "platform", "posixpath",
    "pprint", "queue", "random", "re", "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "signal",
    "smtplib", "socket", "socketserver", "sqlite3", "ssl", "statistics", "string", "struct", "subprocess", "symtable",
    "sysconfig", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit", "tokenize", "trace", "traceback",
    "types", "typing", "unicodedata", "unittest", "unittest.mock", "urllib.parse", "urllib.request", "uuid",
    "warnings", "wave", "weakref", "xml.dom.minidom", "xml.etree.ElementTree", "zipfile", "zlib",
)  # fmt: skip
LONGEST = 160  # characters of an answer


def documented() -> dict[str, str]:
    """Functions and classes of the standard library, with the first sentence of what each says about itself."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or not callable(value) or getattr(value, "__module__", None) != name:
                continue
            said = first_sentence(inspect.getdoc(value) or "")
            if said:
                found[f"{name}.{key}"] = said
            for inner, method in sorted(vars(value).items()) if inspect.isclass(value) else ():
                said = first_sentence(inspect.getdoc(method) or "") if inspect.isfunction(method) else ""
                if said and not inner.startswith("_"):
                    found[f"{name}.{key}.{inner}"] = said
    return found


def first_sentence(text: str) -> str:
    """The first sentence of a docstring on one line; empty where it is none, or a long one."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    found = re.match(r"[A-Z].{8,}?[.](?= |$)", paragraph)
    return found.group() if found and len(found.group()) <= LONGEST and "(" not in found.group() else ""


def digits_to_sort(draw: random.Random, count: int) -> list[dict[str, str]]:
    """Five digits to be sorted, never the same ones in the same order twice."""
    records = []
    for number in draw.sample(range(10**5), count):
        digits = f"{number:05d}"
        records.append({"instruction": f"Sort the digits {' '.join(digits)}.", "output": " ".join(sorted(digits))})
    return records


def main(count: int, folder: Path) -> None:
    draw = random.Random(0)
    said = documented()
    names = draw.sample(sorted(said), min(len(said), count // 2))
    about = [{"instruction": f"What does {name} do?", "output": said[name]} for name in names]
    digits = digits_to_sort(draw, count - len(about) + count // 2)
    pairs = [
        {"instruction": each["instruction"], "chosen": each["output"], "rejected": other["output"]}
        for each, other in zip(about, [*about[1:], about[0]], strict=True)
    ]
    # What a policy is rewarded for, it has not seen with its answer.
    sorting, problems = digits[count // 2 :], digits[: count // 2]
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in {"instructions": about + sorting, "preferences": pairs, "digits": problems}.items():
        draw.shuffle(records)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name:<14}{len(records):,}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
