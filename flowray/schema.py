"""The JSON Schema of configuration files, made from the configuration itself.

Types and defaults come from the classes; descriptions come from where a reader of the source finds them: the comment
behind a field, or else the first line of the docstring of the field's class. So there is one source for all.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import itertools
import json
import textwrap
import tokenize
import types
import typing
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Struct, structs

from flowray.config import Config

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_INDENT = 4  # of a class body; deeper is inside a method or a default


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12)."""
    definitions: dict[str, Any] = {}
    root = _structure(Config, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://flowray.dev/schema/flowray.schema.json",
        "title": "flowray configuration",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def text() -> str:
    """The schema as the file that is committed."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def comments_of(structure: type) -> dict[str, str]:
    """The comment behind each field of a class, by field; fields without one are left out.

    A comment on a field's last line counts too, for fields whose default takes several.
    """
    found: dict[str, str] = {}
    field, depth = "", 0
    source = textwrap.dedent(inspect.getsource(structure))
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token, following in itertools.pairwise(tokens):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if token.type == tokenize.NAME and token.start[1] == _INDENT and depth == 0:
            field = token.string if following.string == ":" else ""
        if token.type == tokenize.COMMENT and field and depth == 0:
            found.setdefault(field, token.string.lstrip("# ").strip())
        if token.type == tokenize.NEWLINE:
            field = ""
    return found


def _structure(structure: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(structure)
    comments = comments_of(structure)
    properties: dict[str, Any] = {}
    required = []
    for name, default in _fields(structure):
        described = _type(hints[name], definitions)
        description = comments.get(name) or _first_line(_class_in(hints[name]))
        properties[name] = {"description": description, **described} if description else described
        if default is msgspec.NODEFAULT:
            required.append(name)
        else:
            properties[name]["default"] = msgspec.to_builtins(default)
    made: dict[str, Any] = {"description": _first_line(structure), "type": "object", "properties": properties}
    if required:
        made["required"] = required
    return {**made, "additionalProperties": False}


def _fields(structure: Any) -> list[tuple[str, Any]]:
    """Fields with their defaults, made if they are made by a factory."""
    if issubclass(structure, Struct):
        return [(f.name, _default(f.default, f.default_factory, msgspec.NODEFAULT)) for f in structs.fields(structure)]
    return [
        (f.name, _default(f.default, f.default_factory, dataclasses.MISSING)) for f in dataclasses.fields(structure)
    ]


def _default(default: Any, factory: Any, missing: Any) -> Any:
    if default is not missing:
        return default
    return factory() if factory is not missing else msgspec.NODEFAULT


def _type(wanted: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted in _PLAIN:
        return {"type": _PLAIN[wanted]}
    if _is_structure(wanted):
        if wanted.__name__ not in definitions:
            definitions[wanted.__name__] = {}  # its place, so that a structure within itself ends
            definitions[wanted.__name__] = _structure(wanted, definitions)
        return {"$ref": f"#/$defs/{wanted.__name__}"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return _any_of([_type(one, definitions) for one in arguments])
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    raise TypeError(f"no schema for {wanted!r}: teach flowray.schema this type")


def _any_of(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain types as one list of names, as people write it."""
    if all(set(choice) == {"type"} for choice in choices):
        names = [choice["type"] for choice in choices]
        return {"type": [name for name in names if not (name == "integer" and "number" in names)]}
    return {"anyOf": choices}


def _is_structure(wanted: Any) -> bool:
    return isinstance(wanted, type) and (issubclass(wanted, Struct) or dataclasses.is_dataclass(wanted))


def _class_in(wanted: Any) -> Any:
    """The class that a type is about: itself, or the one that a list, mapping or union holds."""
    if _is_structure(wanted):
        return wanted
    return next((found for one in get_args(wanted) if (found := _class_in(one)) is not None), None)


def _first_line(structure: Any) -> str:
    return (inspect.getdoc(structure) or "").partition("\n")[0] if structure is not None else ""
