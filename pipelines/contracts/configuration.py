"""The configuration: the base of its sections, and messages for mistakes with place, cause and remedy.

A section may be a union of models that one key distinguishes (``kind`` of a feature, ``protocol`` of the towers). A key
that only another of them has is refused with that model's name.
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

Model = type[BaseModel]


class Section(BaseModel):
    """A frozen part of the configuration in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def as_moment(value: object) -> object:
    """A date, a time or the text of one as a moment in UTC (a date: its beginning); anything else as it is.

    Raises:
        ValueError: the text is no date or time of ISO 8601, or the moment is outside the calendar in UTC.
    """
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError as err:
            raise ValueError("expected a date or a time, such as 2026-02-01 or 2026-02-01T12:00:00Z") from err
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime.datetime):
        return value
    try:
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)
    except OverflowError as err:
        raise ValueError("expected a moment from 0001-01-01 to 9999-12-31 UTC") from err


def _time_alone(value: object) -> object:
    """``as_moment`` for a key that is a time: a number is none."""
    if isinstance(value, int | float):
        raise ValueError("expected a date or a time, such as 2026-02-01 or 2026-02-01T12:00:00Z")
    return as_moment(value)


# A key that is a moment: written as a date or a time, always read as UTC.
Moment = Annotated[datetime.datetime, BeforeValidator(_time_alone)]
# A key that is a moment, or a value of an order.
MomentOrOrder = Annotated[datetime.datetime | int, BeforeValidator(as_moment)]


@dataclass(frozen=True)
class Location:
    """Where a mistake is. keys: as written in the TOML; found: the models there; tag: key and value that select one."""

    keys: tuple[str, ...]
    found: tuple[Model, ...]
    tag: tuple[str, str] | None = None
    others: tuple[Model, ...] = ()


def describe(error: ValidationError, where: str, model: object) -> str:
    """One line per mistake: the file, the key, what is wrong, what was found.

    Args:
        error: pydantic's error.
        where: the file or section it was read from.
        model: what was read: a model, or a union of models.
    """
    return "\n".join(f"{where}: {_line(mistake, model)}" for mistake in error.errors())


def _line(mistake: Any, model: object) -> str:
    parts = tuple(mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        place = locate(model, parts[:-1])
        return f"{'.'.join([*place.keys, str(parts[-1])])}: {_unknown(str(parts[-1]), place)}"
    place, value = locate(model, parts), mistake.get("input")
    found = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "missing":
        message, found = "required, but missing", ""
    elif mistake["type"] == "union_tag_invalid":
        context = mistake["ctx"]
        name = context["discriminator"].strip("'")
        message, found = f"unknown {name} {context['tag']!r}; expected one of {context['expected_tags']}", ""
    elif mistake["type"] == "union_tag_not_found":
        message, found = f"{mistake['ctx']['discriminator']} is required, but missing", ""
    elif mistake["type"] == "literal_error" and place.tag is not None:
        message += f" with {place.tag[0]} = {place.tag[1]!r}"
    return f"{'.'.join(place.keys) or 'top level'}: {message}{found}"


def _unknown(name: str, place: Location) -> str:
    """Why the key is unknown: only another model of the union has it, or none does; then the most similar key."""
    if place.tag is not None:
        key, value = place.tag
        owners = [tags_of(model, key)[0] for model in place.others if name in model.model_fields]
        if owners:
            wanted = " or ".join(map(repr, owners))
            return f"only {key} = {wanted} reads it, and {key} is {value!r} here. Leave it out."
    names = sorted({field for model in (*place.found, *place.others) for field in model.model_fields})
    near = difflib.get_close_matches(name, names, n=1)
    prefix = ".".join(key for key in place.keys if not key.isdigit())
    guess = f"; did you mean {'.'.join([prefix, near[0]] if prefix else near)}?" if near else ""
    return f"unknown key: remove it or correct its name{guess}"


def locate(model: object, parts: tuple[str | int, ...]) -> Location:
    """The location in ``model`` that pydantic's ``parts`` name."""
    place = Location((), models_in(model))
    for part in parts:
        key = tag_key(place.found)
        chosen = [found for found in place.found if key is not None and part in tags_of(found, key)]
        if key is not None and chosen and place.tag is None:
            others = tuple(found for found in place.found if found is not chosen[0])
            place = Location(place.keys, (chosen[0],), (key, str(part)), others)
            continue
        inner = [field.annotation for found in place.found if (field := found.model_fields.get(str(part)))]
        # What is no field is a place in a list or a name in a table: there is what these hold.
        held = models_in(tuple(inner)) if inner else place.found
        tag, others = (None, ()) if held else (place.tag, place.others)
        place = Location((*place.keys, str(part)), held, tag, others)
    return place


def models_in(annotation: object) -> tuple[Model, ...]:
    """The models that a key's type holds: itself, of a union, a list, a table or an optional one."""
    return tuple(dict.fromkeys(_models(annotation)))


def _models(annotation: object) -> Iterator[Model]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in annotation if isinstance(annotation, tuple) else get_args(annotation):
        yield from _models(inner)


def tag_key(models: tuple[Model, ...]) -> str | None:
    """The key that distinguishes the models of a union, by a different literal in each; None for one model."""
    if len(models) < 2:
        return None
    for name in models[0].model_fields:
        tags = [tags_of(model, name) for model in models]
        if all(tags) and len({tag for each in tags for tag in each}) == sum(map(len, tags)):
            return name
    return None


def tags_of(model: Model, key: str) -> tuple[str, ...]:
    """The literal values of ``key`` in ``model``; none where it is no literal, or no key of it."""
    field = model.model_fields.get(key)
    annotation: object = None if field is None else field.annotation
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()
