"""`llmfast/_bpe.pyi`, which type checkers read in place of the extension, says what the extension has."""

import ast
import inspect
import re
from importlib import resources

from llmfast import _bpe


def parameters_in_stub(node: ast.FunctionDef) -> list[str]:
    given = node.args
    assert given.args == [*given.args, *given.posonlyargs, *given.kwonlyargs]
    assert given.vararg is given.kwarg is None
    assert not given.defaults
    return [each.arg for each in given.args]


def stub_members(body: list[ast.stmt]) -> dict[str, list[str] | str]:
    """Public names with the parameters of functions; "property" for properties, "value" for other attributes."""
    found: dict[str, list[str] | str] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            is_property = any(ast.unparse(each) == "property" for each in node.decorator_list)
            described = "property" if is_property else parameters_in_stub(node)
            assert found.setdefault(node.name, described) == described, f"overloads of {node.name} differ"
        elif isinstance(node, ast.Assign):
            found |= {target.id: "value" for target in node.targets if isinstance(target, ast.Name)}
    return {name: each for name, each in found.items() if name == "__init__" or not name.startswith("_")}


def parameters_of(function) -> list[str]:
    """The names in the signature that nanobind keeps of a function."""
    ((signature, *_),) = function.__nb_signature__
    return [name for name in re.findall(r"[(,] *(\w+)(?=[:,)=])", signature) if name != "None"]


def extension_members(owner) -> dict[str, list[str] | str]:
    found: dict[str, list[str] | str] = {}
    for name, value in vars(owner).items():
        if name.startswith("_") and name != "__init__":
            continue
        if hasattr(value, "__nb_signature__"):
            found[name] = parameters_of(value)
        elif inspect.isdatadescriptor(value):
            found[name] = "property"
    return found


def test_the_stub_has_every_public_name_with_its_parameters():
    tree = ast.parse((resources.files("llmfast") / "_bpe.pyi").read_text("utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    theirs = {name: value for name, value in vars(_bpe).items() if not name.startswith("_")}
    assert stub_members(tree.body) == {
        name: parameters_of(value) for name, value in theirs.items() if not isinstance(value, type)
    }
    assert classes.keys() == {name for name, value in theirs.items() if isinstance(value, type)}
    for name, node in classes.items():
        if issubclass(theirs[name], _bpe.TieBreak):
            assert list(stub_members(node.body)) == [member.name for member in theirs[name]]
        else:
            assert stub_members(node.body) == extension_members(theirs[name]), name
