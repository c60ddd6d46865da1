"""Strict YAML: convert a file to dataclasses, or raise an error with file and line.

Papers and recipes are edited by hand, so typing errors must not pass silently: unknown keys, missing keys, duplicate
keys and wrong types are errors. (pydantic would check the same, but without line numbers, and it is not installed on a
machine that only has torch, timm and accelerate.)
"""

import dataclasses
import math
import stat
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from frepro.errors import FreproError, one_line, printable, unknown

T = TypeVar("T")


class Document:
    """The root or a part of a YAML file, with its location in the file."""

    def __init__(self, path: Path, node: yaml.Node) -> None:
        self.path = path
        self.node = node

    @classmethod
    def read(cls, path: Path) -> "Document":
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for a writer
                raise OSError("it is not a regular file")
            with path.open(encoding="utf-8") as stream:  # a node then knows the name of its file
                node = yaml.compose(stream, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or getattr(error, "reason", error)
            raise FreproError(f"{path}:{mark.line + 1 if mark else 1}: invalid YAML: {printable(reason)}") from error
        except RecursionError as error:
            raise FreproError(f"{path}:1: {TOO_DEEP}") from error
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise FreproError(f"cannot read {printable(path)}: {one_line(error)}") from error
        if node is None:
            raise FreproError(f"{path}:1: the file is empty")
        _check_nodes(path, node)
        return cls(path, node)

    def error(self, message: str, node: yaml.Node | None = None) -> FreproError:
        mark = (node or self.node).start_mark  # of a mapping that is put together from files, each key has its own file
        return FreproError(f"{mark.name}:{mark.line + 1}: {message}")

    def items(self) -> dict[Any, tuple[yaml.Node, "Document"]]:
        """Return key -> (node of the key, value) for a mapping."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"expected keys and values, found {self._found()}")
        pairs: dict[Any, tuple[yaml.Node, Document]] = {}
        for key_node, value_node in self.node.value:
            key = Document(self.path, key_node).scalar()
            if key in pairs:
                raise self.error(f"duplicate key {key!r}", key_node)
            pairs[key] = (key_node, Document(self.path, value_node))
        return pairs

    def scalar(self) -> Any:
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error(f"expected one value, found {self._found()}")
        return self.plain()

    def plain(self) -> Any:
        """Return the value as YAML parses it: mappings with text as keys, lists, numbers, text, booleans and null."""
        try:
            value = yaml.SafeLoader("").construct_object(self.node, deep=True)
        except (yaml.YAMLError, ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
            reason = getattr(error, "problem", None) or one_line(error)  # by tag, YAML may raise any of these
            raise self.error(f"invalid value: {printable(reason)}") from error
        if not _is_plain(value):
            raise self.error(f"expected numbers, text, lists or keys and values, found {printable(self._found())[:80]}")
        return value

    def overlaid(self, other: "Document") -> "Document":
        """Return this mapping updated with ``other``. Line numbers remain those in the file of each key."""
        keys = set(other.items())
        kept = [pair for pair in self.node.value if Document(self.path, pair[0]).scalar() not in keys]
        self.items()  # raises for duplicate keys in this file, too
        node = yaml.MappingNode(self.node.tag, kept + other.node.value, self.node.start_mark, self.node.end_mark)
        return Document(self.path, node)

    def bind(self, kind: type[T]) -> T:
        """Return the value as ``kind``: a dataclass, dict, list, tuple, union, Literal or scalar type."""
        return _bind(self, kind)

    def _found(self) -> str:
        if isinstance(self.node, yaml.MappingNode):
            return "keys and values"
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        return repr(self.node.value)


TOO_DEEP = "lists or keys and values are nested too deeply"
DEEPEST = 20
LARGEST = 2**63 - 1


def _check_nodes(path: Path, root: yaml.Node) -> None:
    """Raise for nesting that would exhaust the stack, of which an alias inside its own anchor is the extreme."""
    waiting, seen = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen > 100_000:  # an alias counts each time that it is used
            raise Document(path, node).error(TOO_DEEP if depth > DEEPEST else "the file has too many values")
        if isinstance(node, yaml.SequenceNode):
            waiting += [(each, depth + 1) for each in node.value]
        elif isinstance(node, yaml.MappingNode):
            waiting += [(each, depth + 1) for pair in node.value for each in pair]


def _is_plain(value: Any) -> bool:
    """Return whether a value can be stored as JSON and be read back as the same value."""
    match value:
        case dict():
            return all(isinstance(key, str | int) and _is_plain(each) for key, each in value.items())
        case list():
            return all(map(_is_plain, value))
        case bool() | str() | None:
            return True
        case int():
            return abs(value) <= LARGEST
        case float():
            return math.isfinite(value)
    return False


def _bind(document: Document, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _bind_dataclass(document, kind)
    if origin is dict:
        return {
            _bind(Document(document.path, key_node), arguments[0]): _bind(value, arguments[1])
            for key_node, value in document.items().values()
        }
    if origin in (list, tuple):
        if not isinstance(document.node, yaml.SequenceNode):
            raise document.error(f"expected a list, found {document._found()}")
        parts = [Document(document.path, node) for node in document.node.value]
        if origin is list or arguments[-1] is ...:
            return origin(_bind(part, arguments[0]) for part in parts)
        if len(parts) != len(arguments):
            raise document.error(f"expected {len(arguments)} values, found {len(parts)}")
        return tuple(_bind(part, argument) for part, argument in zip(parts, arguments, strict=True))
    if origin in (Union, types.UnionType):
        return _bind_union(document, arguments)
    if kind is Any:
        return document.plain()
    value = document.scalar()
    if origin is Literal:
        if value not in arguments:
            raise document.error(f"expected one of {', '.join(map(repr, arguments))}, found {value!r}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if kind is float and isinstance(value, str) else ""
        raise document.error(f"expected {_name(kind)}, found {value!r}{hint}")
    return value


def _bind_union(document: Document, arguments: tuple[Any, ...]) -> Any:
    errors = []
    for argument in arguments:
        try:
            return _bind(document, argument)
        except FreproError as error:
            if argument is not types.NoneType:
                errors.append(error)
    if len(errors) == 1:  # X | None: report the error for X
        raise errors[0]
    raise document.error(f"expected {' or '.join(_name(a) for a in arguments)}, found {document._found()}")


def _bind_dataclass(document: Document, kind: Any) -> Any:
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "line"}
    values: dict[str, Any] = {}
    for key, (key_node, value) in document.items().items():
        if key not in fields:
            raise document.error(str(unknown("key", key, fields)), key_node)
        values[key] = _bind(value, hints[key])
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise document.error(f"{name!r} is missing")
    if "line" in hints:
        values["line"] = document.node.start_mark.line + 1
    try:
        return kind(**values)
    except ValueError as error:  # a check in __post_init__
        raise document.error(str(error)) from error


def _name(kind: Any) -> str:
    return {str: "text", int: "an integer", float: "a number", bool: "true or false"}.get(
        kind, "null" if kind is types.NoneType else str(kind)
    )
