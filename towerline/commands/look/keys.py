"""What one key of the TOML means: its type, default and description, out of the models that read it.

A section may be a union of models, such as the kinds of a feature: a key that several of them have is shown once for
each meaning, with the models' tag.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import inspect
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from pipelines.contracts.errors import ConfigError
from towerline.config import Config

Model = type[BaseModel]

_NAMES: dict[object, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    datetime.datetime: "date and time",
    Any: "any value",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Meaning:
    """What a key means in one model.

    type: as a person writes it. default: as in the TOML, "required" or "not set". only_with: the tags of the models
    that have the key, where others of the union do not, or mean something else. keys: of a section, its keys.
    """

    type: str
    default: str
    description: str
    only_with: str = ""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """A field of a model, with the number of models in the union that it belongs to."""

    name: str
    field: FieldInfo
    model: Model
    models: int


def explain(key: str) -> list[Meaning]:
    """The meanings of ``section.key``; a section's own name explains the section.

    Raises:
        ConfigError: there is no such key; close ones are named.
    """
    places = list(_places(Config, tuple(key.strip().split("."))))
    if not places:
        near = difflib.get_close_matches(key, list(dict.fromkeys(_all_keys(Config))), n=3, cutoff=0.5)
        guess = f" Did you mean {' or '.join(near)}?" if near else " `towerline config` prints all of them."
        raise ConfigError(f"--explain {key}: there is no such key.{guess}")
    if len(places) > 1 and all(_tag(place.model)[0] == place.name for place in places):
        default = "chosen to fit the data" if places[0].name == "protocol" else "required"
        return [Meaning(" or ".join(type_name(place.field.annotation) for place in places), default, "")]
    grouped: dict[Meaning, list[Place]] = {}
    for place in places:
        grouped.setdefault(_meaning(place.field), []).append(place)
    return [dataclasses.replace(meaning, only_with=_only_with(same)) for meaning, same in grouped.items()]


def _places(annotation: object, parts: tuple[str, ...]) -> Iterator[Place]:
    models = models_in(annotation)
    for model in models:
        field = model.model_fields.get(parts[0])
        if field is None:
            continue
        if len(parts) == 1:
            yield Place(parts[0], field, model, len(models))
            continue
        inner: object = field.annotation
        rest = parts[1:]
        found = list(_places(inner, rest))
        # In a table of free names, such as [actions], each name stands for a value.
        while not found and rest and (inner := _values_of(inner)) is not None:
            rest = rest[1:]
            found = list(_places(inner, rest)) if rest else [Place(parts[0], field, model, len(models))]
        yield from found


def _values_of(annotation: object) -> object:
    """The type of a table's values; None where it is no table of free names."""
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    inner = [found for one in get_args(annotation) if (found := _values_of(one)) is not None]
    return inner[0] if inner else None


def models_in(annotation: object) -> tuple[Model, ...]:
    """The models that a type holds: itself, those of a union or of a list. A table of free names is not entered."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) in (dict, Literal):
        return ()
    return tuple(dict.fromkeys(model for inner in get_args(annotation) for model in models_in(inner)))


def _all_keys(annotation: object, before: str = "") -> Iterator[str]:
    for model in models_in(annotation):
        for name, field in model.model_fields.items():
            yield before + name
            yield from _all_keys(field.annotation, f"{before}{name}.")


def _only_with(places: list[Place]) -> str:
    """``kind = "text" or "list"``: which models have the key; nothing where all have."""
    if len(places) == places[0].models:
        return ""
    names = {name: None for place in places if (name := _tag(place.model)[0])}
    values = [json.dumps(value) for place in places for value in _tag(place.model)[1]]
    return f"{next(iter(names))} = {' or '.join(values)}" if names else ""


def _tag(model: Model) -> tuple[str, tuple[str, ...]]:
    """Name and values of the literal that tells a model from the others of its union."""
    for name in ("kind", "protocol"):
        field = model.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is Literal:
            return name, get_args(field.annotation)
    return "", ()


def _meaning(field: FieldInfo) -> Meaning:
    models = models_in(field.annotation)
    description = field.description or ""
    if models and not description:
        description = "\n\n".join(dict.fromkeys(inspect.cleandoc(model.__doc__ or "") for model in models))
    keys = dict.fromkeys(name for model in models for name in model.model_fields)
    return Meaning(_type(field), _default(field, section=bool(models)), description, keys=tuple(keys))


def _default(field: FieldInfo, *, section: bool) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "not set"
    if section and (isinstance(value, BaseModel) or not value):
        return "its keys' defaults" if isinstance(value, BaseModel) or get_origin(field.annotation) is None else "empty"
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)


def _type(field: FieldInfo) -> str:
    limits = [f"{sign} {limit:g}" for name, sign in _BOUNDS.items() if (limit := _limit(field, name)) is not None]
    return ", ".join([type_name(field.annotation), *limits])


def _limit(field: FieldInfo, name: str) -> float | None:
    found = [getattr(one, name) for one in field.metadata if getattr(one, name, None) is not None]
    return float(found[0]) if found else None


def type_name(annotation: object) -> str:
    """A type as a person who writes TOML reads it: "integer", "list of text", '"exact" or "scann"'."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(one) for one in arguments if one is not type(None)))
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"table of {type_name(arguments[1])}"
    if models_in(annotation):
        return "section"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
