"""Configuration: dataclasses that load from and save to YAML.

A file names only what differs from the defaults. Unknown settings and wrong types are refused by name::

    training.lerning_rate is not a setting; did you mean learning_rate?
    training.steps: 'many' is not an integer
"""

import dataclasses
import difflib
import re
import textwrap
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
import docstring_parser
import yaml
from cattrs.cols import (
    homogenous_tuple_structure_factory,
    is_mapping,
    is_mutable_sequence,
    list_structure_factory,
    mapping_structure_factory,
)
from cattrs.gen import make_dict_structure_fn
from cattrs.strategies import configure_union_passthrough

from llmfast.files import atomic_write

Config = TypeVar("Config")


def load(cls: type[Config], path: str | Path) -> Config:
    """The configuration in a YAML file, an instance of the dataclass ``cls``; the rest keeps its default.

    Raises:
        ValueError: the file is not YAML, names an unknown setting, or a value has the wrong type.
        OSError: the file cannot be read.
    """
    return _load(cls, path)[0]


def load_unfilled(cls: type[Config], path: str | Path) -> Config:
    """As :func:`load`, for values to start from: what is left out is as in :func:`unfilled`."""
    loaded, tree = _load(cls, path)
    return _unfilled(loaded, tree)


def load_over(cls: type[Config], path: str | Path, changes: str | Path | None) -> Config:
    """The configuration in one file, with what another one says instead.

    Raises:
        ValueError: as :func:`load`, of either.
        OSError: a file cannot be read.
    """
    if changes is None:
        return load(cls, path)
    _load(cls, changes)  # its errors name it
    return from_dict(cls, _merged(read_yaml(path), read_yaml(changes) or {}))


def _merged(tree: dict, changes: dict) -> dict:
    both = {name for name in tree.keys() & changes.keys() if isinstance(changes[name], dict)}
    return tree | changes | {name: _merged(tree[name], changes[name]) for name in both}


def save(config: Any, path: str | Path) -> None:
    """Writes a dataclass instance as YAML, each setting under its documentation as a comment (atomic)."""
    atomic_write(path, "\n".join(_commented(config)) + "\n")


def from_dict(cls: type[Config], tree: Any) -> Config:
    """A dataclass instance from nested dictionaries of plain values, checked as :func:`load` describes."""
    try:
        return _converter.structure(tree, cls)
    except Exception as error:  # cattrs raises groups, KeyError, TypeError and what a __post_init__ raises
        raise ValueError("; ".join(_sentences(error, (), cls))) from None


def unfilled(config: Config) -> Config:
    """A default configuration as its class declares it, without what ``__post_init__`` derives.

    A field that is None until it is derived from others stays None, so that it follows when those change:
    starting from the filled-in default, a new ``width`` would keep the ``ff_width`` of the old one. A section
    that differs from the default of its class is kept as it is.
    """
    needed = [field for field in dataclasses.fields(config) if field.default is field.default_factory]
    return config if needed or config != type(config)() else _unfilled(config, {})


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, as plain values; 1e-3 is a number, and a setting given twice an error.

    Raises:
        ValueError: it is not YAML.
        OSError: the file cannot be read.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None


def parse_yaml(text: str) -> Any:
    """What a text in YAML says, read as :func:`read_yaml` does.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass instance as nested dictionaries of plain values (what JSON and YAML can hold)."""
    return _converter.unstructure(config)


def differences(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations of one class differ, by name (``model.width``), with both values."""
    ours, theirs = _leaves(to_dict(before)), _leaves(to_dict(after))
    return {name: (ours.get(name), value) for name, value in theirs.items() if ours.get(name) != value}


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with other values for some settings, by name (``model.width``).

    Raises:
        ValueError: values that cannot be.
    """
    tree = to_dict(config)
    for name, value in settings.items():
        *sections, last = name.split(".")
        table = tree
        for section in sections:
            table = table[section]
        table[last] = value
    return from_dict(type(config), tree)


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found


def _load(cls: type[Config], path: str | Path) -> tuple[Config, dict]:
    tree = read_yaml(path)
    tree = {} if tree is None else tree
    try:
        return from_dict(cls, tree), tree
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _unfilled(config: Config, tree: dict) -> Config:
    """Built around ``__init__``: the values ``tree`` names from ``config``, the others as declared."""
    copy = object.__new__(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = _unfilled(value, tree[field.name]) if field.name in tree else unfilled(value)
        elif field.name not in tree and field.default is not dataclasses.MISSING:
            value = field.default
        object.__setattr__(copy, field.name, value)
    return copy


# --- types: strict, because a silent int(1.5) or str(False) is a different experiment -----------------------


def _exactly(kind: type, words: str, accepts: tuple[type, ...]):
    def structure(value: Any, _: type) -> Any:
        if type(value) not in accepts:
            raise TypeError(f"{value!r} is not {words}")
        return kind(value)

    return structure


def _structure_literal(value: Any, cls: type) -> Any:
    if not any(value == choice and type(value) is type(choice) for choice in get_args(cls)):
        raise TypeError(f"{value!r} is not one of {', '.join(map(repr, get_args(cls)))}")
    return value


def _only_from(kind: type, words: str, factory):
    """A cattrs hook factory that refuses values that are not of ``kind``: text is not a list of letters."""

    def make(cls: type, converter: cattrs.Converter):
        structure = factory(cls, converter)

        def checked(value: Any, cls: type) -> Any:
            if not isinstance(value, kind):
                raise TypeError(f"{value!r} is not {words}")
            return structure(value, cls)

        return checked

    return make


def _table_factory(cls: type, converter: cattrs.Converter):
    return make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)


def _is_homogenous_tuple(cls: type) -> bool:
    return get_origin(cls) is tuple and get_args(cls)[-1] is Ellipsis


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(unstruct_collection_overrides={tuple: list})
    for predicate, kind, words, factory in [
        (dataclasses.is_dataclass, dict, "a table of settings", _table_factory),
        (is_mapping, dict, "a table", mapping_structure_factory),
        (is_mutable_sequence, list, "a list", list_structure_factory),
        (_is_homogenous_tuple, list, "a list", homogenous_tuple_structure_factory),
    ]:
        converter.register_structure_hook_factory(predicate, _only_from(kind, words, factory))
    configure_union_passthrough(int | float | str | bool | None, converter)
    converter.register_structure_hook_func(lambda cls: get_origin(cls) is Literal, _structure_literal)
    for kind, words, accepts in [
        (int, "an integer", (int,)),
        (float, "a number", (int, float)),
        (str, "text", (str,)),
        (bool, "true or false", (bool,)),
        (Path, "a path", (str,)),
    ]:
        converter.register_structure_hook(kind, _exactly(kind, words, accepts))
    converter.register_unstructure_hook(Path, str)
    return converter


_converter = _make_converter()


# --- errors: cattrs's tree of exceptions as sentences that name the setting ---------------------------------


def _sentences(error: BaseException, where: tuple[str, ...], expected: Any) -> list[str]:
    """``where`` is the path of the value that failed and ``expected`` its type."""
    name = _path(where)
    if isinstance(error, cattrs.ClassValidationError | cattrs.IterableValidationError):
        noted, plain = error.group_exceptions()
        found = [s for inner, note in noted for s in _sentences(inner, (*where, _step(note)), note.type)]
        return found + [s for inner in plain for s in _sentences(inner, where, expected)]
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return [_unknown(key, error.cl, where) for key in sorted(error.extra_fields, key=str)]
    if isinstance(error, KeyError):
        return [f"{name} is missing"]
    if isinstance(error, TypeError) and " is not " not in str(error):  # cattrs's own words about its dispatch
        return [f"{name} is not {str(expected).replace('typing.', '')}"]
    return [f"{name}: {error}" if name else str(error)]


def _path(where: tuple[str, ...]) -> str:
    return "".join(part if part.startswith("[") else f".{part}" for part in where).lstrip(".")


def _step(note: Any) -> str:
    return note.name if isinstance(note, cattrs.AttributeValidationNote) else f"[{note.index!r}]"


def _unknown(key: Any, cls: type, where: tuple[str, ...]) -> str:
    names = [field.name for field in dataclasses.fields(cls)]
    sentence = f"{_path((*where, str(key)))} is not a setting"
    nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    return f"{sentence}; did you mean {nearest[0]}?" if nearest else f"{sentence}; there are {', '.join(names)}"


# --- YAML ---------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number (PyYAML's own rule reads text) and refuses a setting given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as a number, and escapes what YAML would fold (tabs, line ends)."""

    def represent_str(self, text):
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _commented(config: Any, indent: str = "") -> list[str]:
    lines = []
    comments = field_help(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        comment = textwrap.wrap(comments.get(field.name, ""), 100 - len(indent))
        lines += [f"{indent}# {line}" for line in comment]
        if dataclasses.is_dataclass(value):
            lines += [f"{indent}{field.name}:", *_commented(value, indent + "  ")]
        else:
            lines += [indent + line for line in _dump(field.name, _converter.unstructure(value))]
    return lines


def _dump(name: str, value: Any) -> list[str]:
    flow = None if isinstance(value, list | dict) else False  # None: innermost ones on one line
    text = yaml.dump(
        {name: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=100
    )
    return text.splitlines()


def field_help(cls: type) -> dict[str, str]:
    """What each field means: from the class docstring's ``Attributes:`` and the strings under fields."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        try:
            documentation = docstring_parser.parse_from_object(base)
        except (OSError, TypeError):  # the class has no source file, as one typed at a prompt
            documentation = docstring_parser.parse(base.__doc__ or "")
        found |= {
            each.arg_name: " ".join(each.description.split()) for each in documentation.params if each.description
        }
    return found
