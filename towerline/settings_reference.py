"""The reference of all settings: what each key of the TOML means, from the models that read it.

Writes ``docs/settings.md`` and ``docs/settings.schema.json`` (``python -m towerline.settings_reference docs``).
``describe_key`` is what ``towerline config --explain KEY`` prints.
"""

from __future__ import annotations

import difflib
import inspect
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipelines.contracts.configuration import models_in, tag_key, tags_of
from pipelines.contracts.errors import ConfigError
from towerline.config import Config
from towers.keys import OnlyWith

Model = type[BaseModel]
MARKDOWN_FILE, SCHEMA_FILE = "settings.md", "settings.schema.json"

_HEAD = """# Settings

Every key of the TOML. This page is generated from the code: run `make docs-settings` after a change.
`towerline config --explain KEY` prints one key. `settings.schema.json` next to this page is a JSON Schema for editors.

A key that is not listed is refused, and so is one that has no effect with the other keys. Keys without a default are
required where their section is given. Lengths of time, sizes and shares (0 to 1) have their unit in the description.
"""
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
_BOUNDS = {
    annotated_types.Ge: ("ge", "at least {}"),
    annotated_types.Gt: ("gt", "above {}"),
    annotated_types.Le: ("le", "at most {}"),
    annotated_types.Lt: ("lt", "below {}"),
    annotated_types.MinLen: ("min_length", "at least {} of them"),
}


@dataclass(frozen=True)
class Key:
    """One key of a section. default: as TOML, "required", "not set", or one per kind or protocol."""

    path: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class SectionReference:
    """A section with its keys, in the order of the model. header: as it is in the TOML."""

    header: str
    description: str
    keys: tuple[Key, ...]

    @property
    def place(self) -> str:
        """The header without brackets."""
        return self.header.strip("[]")


def describe_key(path: str) -> str:
    """What a key or a section means, as lines of text: type, range, default and description, or the section's keys.

    ``path`` is dotted, as for ``--set``: ``towers.epochs``, ``index.tree``. Any name will do where a table has names of
    its own: ``validation.columns.events.price.max``.

    Raises:
        ConfigError: there is no such key; the message names the closest one.
    """
    found = find(path)
    if isinstance(found, Key):
        return f"{found.path}: {found.type}\ndefault: {found.default}\n\n{found.description}"
    return "\n".join([found.header, "", found.description, "", *(f"  {key.path}" for key in found.keys)])


def find(path: str) -> Key | SectionReference:
    """The key or the section that ``path`` names, as for ``describe_key``; a section with the keys of those inside it.

    Raises:
        ConfigError: there is no such key; the message names the closest one.
    """
    wanted, everything = path.strip().strip("[]"), parts()
    for key in (key for part in everything for key in part.keys):
        # A key may be a table of values by name.
        if _fits(key.path, wanted) or (key.type.startswith("table of") and _fits(f"{key.path}.NAME", wanted)):
            return key
    inside = [part for part in everything if _fits(part.place, wanted) or _begins(part.place, wanted)]
    if wanted and inside:
        keys = tuple(key for part in inside for key in part.keys)
        first = inside[0]
        return (
            SectionReference(first.header, first.description, keys)
            if _fits(first.place, wanted)
            else SectionReference(wanted, "", keys)
        )
    known = [key.path for part in everything for key in part.keys]
    near = difflib.get_close_matches(wanted, known, n=1) or [one for one in known if one.split(".")[-1] == wanted][:1]
    hint = f"did you mean {near[0]}?" if near else "`towerline config` prints all of them."
    raise ConfigError(f"{path}: expected a key of the configuration, such as towers.epochs; {hint}")


def _fits(place: str, wanted: str) -> bool:
    """Whether the two are the same, ``NAME`` being any name."""
    names, given = place.split("."), wanted.split(".")
    return len(names) == len(given) and all(name in ("NAME", one) for name, one in zip(names, given, strict=True))


def _begins(place: str, wanted: str) -> bool:
    """Whether ``place`` is a section inside ``wanted``."""
    depth = wanted.count(".") + 1
    return place.count(".") >= depth and _fits(".".join(place.split(".")[:depth]), wanted)


def parts() -> tuple[SectionReference, ...]:
    """All sections, in the order of the whole configuration."""
    return tuple(_parts((Config,), ""))


def _parts(models: tuple[Model, ...], path: str, *, many: bool = False) -> Iterator[SectionReference]:
    """A section and those inside it. models: the members of a union, which is one section."""
    inner: dict[str, Any] = {}
    keys = []
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        fields = {model: model.model_fields[name] for model in models if name in model.model_fields}
        first = next(iter(fields.values()))
        if models_in(first.annotation):
            inner[name] = first.annotation
        else:
            keys.append(_key(name, fields, models, path))
    if keys:
        header = (f"[[{path}]]" if many else f"[{path}]") if path else "top level"
        yield SectionReference(header, _section_text(models), tuple(keys))
    for name, annotation in inner.items():
        listed = _is(annotation, tuple)
        place = f"{path}.{name}".strip(".") + _names_of(annotation)
        yield from _parts(models_in(annotation), place, many=listed)


def _names_of(annotation: object) -> str:
    """``.NAME`` for each level of names that a table of sections has: those of columns, or of keys to tune."""
    if _is(annotation, dict):
        return ".NAME" + _names_of(get_args(annotation)[1])
    return ""


def _is(annotation: object, container: type) -> bool:
    return get_origin(annotation) is container


def _section_text(models: tuple[Model, ...]) -> str:
    """The docstring of a section; of a union one per member."""
    tag = tag_key(models)
    if tag is None:
        return _text(models[0])
    return "\n".join(f"- `{tag} = {json.dumps(tags_of(model, tag)[0])}`: {_one_line(model)}" for model in models)


def _one_line(model: Model) -> str:
    return " ".join(_text(model).split())


def _text(model: Model) -> str:
    """The docstring, with Markdown's marks for code."""
    return (inspect.getdoc(model) or "").replace("``", "`")


def _key(name: str, fields: dict[Model, FieldInfo], models: tuple[Model, ...], path: str) -> Key:
    tag, place = tag_key(models), f"{path}.{name}" if path else name
    if tag == name:
        return _tag(place, fields, path)
    types_of = dict.fromkeys(_type(field) for field in fields.values())
    # Of several lists of words, each word once.
    named = " or ".join(types_of if len(types_of) == 1 else dict.fromkeys(" or ".join(types_of).split(" or ")))
    return Key(place, named, _default_of(fields, models), _description(fields, models))


def _tag(place: str, fields: dict[Model, FieldInfo], path: str) -> Key:
    """The key that tells a union's members apart."""
    words = {json.dumps(tags_of(model, place.rsplit(".", 1)[-1])[0]): field for model, field in fields.items()}
    described = [f"{word}: {field.description}" for word, field in words.items() if field.description]
    default = "required" if any(field.is_required() for field in fields.values()) else "follows from the data"
    return Key(place, " or ".join(words), default, " ".join(described) or _tag_text(path))


def _tag_text(path: str) -> str:
    return f"Which of the above an entry of `{path}` is; it decides which keys it has."


def _description(fields: dict[Model, FieldInfo], models: tuple[Model, ...]) -> str:
    """The description, and when the key takes effect."""
    texts = list(dict.fromkeys(field.description or "" for field in fields.values()))
    tag = tag_key(models)
    limits = []
    if tag is not None and len(fields) < len(models):
        limits.append(f"{tag} = {' or '.join(json.dumps(tags_of(model, tag)[0]) for model in fields)}")
    marks = [str(mark) for mark in next(iter(fields.values())).metadata if isinstance(mark, OnlyWith)]
    limits += [mark.replace("'", '"') for mark in marks]
    only = f" Only with {' and '.join(f'`{limit}`' for limit in limits)}." if limits else ""
    if len(texts) > 1 and tag is not None:
        texts = [f"{json.dumps(tags_of(model, tag)[0])}: {field.description}" for model, field in fields.items()]
        return (" ".join(texts) + only).strip()
    return (texts[0] + only).strip()


def _default_of(fields: dict[Model, FieldInfo], models: tuple[Model, ...]) -> str:
    """The default as TOML; where the members of a union differ, each with its own."""
    values = {model: _default(field) for model, field in fields.items()}
    tag = tag_key(models)
    if len(set(values.values())) == 1 or tag is None:
        return next(iter(values.values()))
    owners = {
        value: [tags_of(model, tag)[0] for model in fields if values[model] == value] for value in values.values()
    }
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in owners.items())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined:
        return "not set"
    return _toml(value)


def _toml(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }" if value else "{}"
    return json.dumps(value) if isinstance(value, str | bool | int) else f"{value:g}"


def _type(field: FieldInfo) -> str:
    bounds = [_bound(mark) for mark in field.metadata]
    return ", ".join([_type_name(field.annotation), *(bound for bound in bounds if bound)])


def _bound(mark: object) -> str | None:
    if type(mark) not in _BOUNDS:
        return None
    name, text = _BOUNDS[type(mark)]
    return text.format(f"{getattr(mark, name):g}")


def _type_name(annotation: Any) -> str:
    """The type as a person says it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(one) for one in inner if one is not type(None)))
    if origin is tuple:
        return f"list of {_plural(_type_name(inner[0]))}"
    if origin is dict:
        return f"table of {_plural(_type_name(inner[1]))}"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(name: str) -> str:
    return {"text": "texts", "whole number": "whole numbers", "number": "numbers"}.get(name, name)


def markdown() -> str:
    """The whole of ``docs/settings.md``."""
    lines, seen = [_HEAD], dict[tuple[str, ...], str]()
    for part in parts():
        lines += [f"## {part.header}" if part.header == "top level" else f"## `{part.header}`", ""]
        content = (part.description, *(f"{key.type}, {key.default}" for key in part.keys))
        if content in seen:
            lines += [f"The same keys as `{seen[content]}`.", ""]
            continue
        seen[content] = part.header
        lines += [part.description, ""] if part.header != "top level" else []
        lines += ["| key | type | default | description |", "|---|---|---|---|"]
        for key in part.keys:
            cells = (f"`{key.path.rsplit('.', 1)[-1]}`", key.type, key.default, key.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of the TOML.

    A union may have members that fit equally well where its key is left out: one of them must fit, not exactly one.
    """
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    _loosen(found)
    return found


def _loosen(node: object) -> None:
    if isinstance(node, dict):
        if "oneOf" in node:
            node["anyOf"] = node.pop("oneOf")
        for value in node.values():
            _loosen(value)
    elif isinstance(node, list):
        for value in node:
            _loosen(value)


def write(folder: Path) -> None:
    """Writes both files into ``folder``."""
    (folder / MARKDOWN_FILE).write_text(markdown(), encoding="utf-8")
    (folder / SCHEMA_FILE).write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
