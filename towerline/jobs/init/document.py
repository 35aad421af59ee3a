"""A TOML with comments: sections, keys with what they rest on, and what to check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import tomli_w

_WIDTH = 120


class Document:
    """The lines of a TOML, written from top to bottom."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def section(self, name: str, *, array: bool = False, checks: Iterable[str] = ()) -> None:
        """Opens ``[name]``, or ``[[name]]``."""
        if self._lines:
            self._lines.append("")
        self.check(checks)
        self._lines.append(f"[[{name}]]" if array else f"[{name}]")

    def comment(self, text: str) -> None:
        """A line of its own."""
        self._lines.extend(f"# {line}" for line in _wrapped(text))

    def check(self, checks: Iterable[str]) -> None:
        """What a person should look at, before the line that follows."""
        for text in checks:
            self.comment(f"check: {text}")

    def key(self, key: str, value: Any, note: str = "", checks: Iterable[str] = ()) -> None:
        """``key = value``, with the evidence behind it, or above it where the line would be too long."""
        self.check(checks)
        line = f"{_key(key)} = {_value(value)}"
        if note and len(line) + len(note) + 4 <= _WIDTH and "\n" not in line:
            self._lines.append(f"{line}  # {_plain(note)}")
            return
        if note:
            self.comment(note)
        self._lines.append(line)

    @property
    def text(self) -> str:
        """The whole TOML."""
        return "\n".join(self._lines) + "\n"


def quoted(name: str) -> str:
    """A key as it is written in the header of a section."""
    return _key(name)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return tomli_w.dumps({"key": value}).removeprefix("key = ").rstrip("\n")


def _plain(text: str) -> str:
    """A comment's text: one line, without control characters."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def _wrapped(text: str) -> list[str]:
    lines, line = [], ""
    for word in _plain(text).split(" "):
        if line and len(line) + len(word) + 3 > _WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]
