"""Forget lists: files that name users, one id per line, in the forms in which people have them.

Read whole before anything is written: what is no id is refused with file and line. Bytes may be UTF-8 or UTF-16 (by
its byte order mark), gzip, with any line ends; quotes around a line are a CSV's and are taken off.
"""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.contracts.conversion import convert_value
from pipelines.contracts.conversion.column_type import INT64
from pipelines.contracts.errors import SchemaError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"
_LINE_END = re.compile(r"\r\n|\n|\r")
_SHOWN = 5
_REMEDY = "Each line is one user id; correct the line, or begin it with # to leave it out. Nothing was written."


@dataclass(frozen=True)
class ForgetLine:
    """One user: ``number`` of the line (from 1) and its ``text``, without the quotes of a CSV."""

    number: int
    text: str


@dataclass(frozen=True)
class ForgetList:
    """Users by line. ``source`` is the file's name, for messages."""

    source: str
    lines: tuple[ForgetLine, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[int | str]) -> ForgetList:
        """A list of ids that are in no file."""
        return cls("forget", tuple(ForgetLine(number, str(one)) for number, one in enumerate(ids, start=1)))

    @classmethod
    def read(cls, path: Path, columns: Sequence[str] = ()) -> ForgetList:
        """Reads a file. Empty lines and lines that begin with # do not count.

        Args:
            path: the file.
            columns: names of the users' id columns: the first line may be one of them, as a CSV's header.

        Raises:
            SchemaError: the file cannot be read, or names nobody.
        """
        lines: list[ForgetLine] = []
        for number, line in enumerate(_LINE_END.split(_text(path)), start=1):
            text = line
            if not text.strip() or text.startswith("#"):
                continue
            quoted = text.strip()
            if len(quoted) > 1 and quoted[0] == quoted[-1] == '"':
                text = quoted[1:-1].replace('""', '"')
            if not lines and text.strip() in columns:
                columns = ()
                continue
            lines.append(ForgetLine(number, text))
        if not lines:
            raise SchemaError(f"{path}: expected user ids, one per line, found none.")
        return cls(str(path), tuple(lines))

    def __len__(self) -> int:
        return len(self.lines)

    def ids(self, id_type: pa.DataType) -> pa.Array:
        """``[lines]`` ids of the data set's type, int64 or string.

        Raises:
            SchemaError: a line is no id of this type.
        """
        if pa.types.is_string(id_type):
            return pa.array([line.text for line in self.lines], pa.string())
        return pa.array([self._integer(line) for line in self.lines], pa.int64())

    def _integer(self, line: ForgetLine) -> int:
        try:
            number = convert_value(line.text, INT64, f"{self.source}, line {line.number}")
        except SchemaError as err:
            raise SchemaError(f"{err}. {_REMEDY}") from err
        if number is None:
            raise SchemaError(
                f"{self.source}, line {line.number}: expected a user id of type int64, got {line.text!r:.80}. {_REMEDY}"
            )
        return int(number)

    def named(self, numbers: Sequence[int]) -> str:
        """The lines of these numbers as words: ``line 7 'x', line 9 'y' and 3 more``."""
        chosen = set(numbers)
        lines = [f"line {line.number} {line.text!r:.60}" for line in self.lines if line.number in chosen]
        more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        return ", ".join(lines[:_SHOWN]) + more


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
        encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
        text = raw.decode(encoding)
    except (OSError, EOFError, UnicodeDecodeError) as err:
        raise SchemaError(
            f"{path}: the list of users cannot be read: {err}. Expected text in UTF-8, or in UTF-16 with a byte order "
            "mark, one id per line."
        ) from err
    if "\0" in text:
        raise SchemaError(f"{path}: expected text with one user id per line, found zero bytes. Save it as UTF-8.")
    return text
