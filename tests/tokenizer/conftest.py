"""Leaves out the tests that compare with libraries that are not there: few have wheels for a Python without a GIL."""

from importlib.util import find_spec

_COMPARED_WITH = {
    "tokenizers": [
        "test_damaged_files.py",
        "test_families.py",
        "test_formats.py",
        "test_other_formats.py",
        "test_text_rules.py",
        "test_training.py",
        "test_transformers.py",
    ],
    "torch": ["test_transformers.py"],
    "tyro": ["test_commands.py", "test_compare.py"],
}

collect_ignore = [file for library, files in _COMPARED_WITH.items() if find_spec(library) is None for file in files]
