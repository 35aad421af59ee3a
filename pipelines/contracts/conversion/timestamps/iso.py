"""ISO 8601 text to moments: whole columns at once, each cell on its own.

Understood are ``2026-02-01``, ``2026-02-01T12:30``, ``2026-02-01 12:30:15`` and fractions of 1 to 9 digits (cut to
microseconds), each time with ``Z``, `` UTC``, ``+00``, ``+0000``, ``+00:00`` or no zone at its end. A
blank may come before an offset, as Ruby writes it, and then the name of its zone after it: Go's ``12:30 +0100 CET``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools, Int32, Int64
from pipelines.contracts.conversion.plain import without
from pipelines.contracts.conversion.texts import Cells

# Longest text: date, time, nine digits, +00:00.
_WIDTH = 35
_DATE, _MINUTES, _SECONDS = 10, 16, 19
_LONGEST_FRACTION = 9
# Cells handled together, so that what is computed stays in the processor's cache.
_BLOCK = 1 << 14
_DAYS_OF_MONTH = np.array(
    [0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] + [0] * 87, np.int32
)  # By any two digits.
_DAYS_BEFORE_MONTH = np.cumsum([0, *_DAYS_OF_MONTH[:-1]], dtype=np.int32)
# A time, a blank, an offset, and the name of the zone, which says no more than the offset.
_SPACED_OFFSET = r"^(.{16,29}) ([+-][0-9]{2}(?::?[0-9]{2})?)(?: [A-Z]{3,5})?$"
_EPOCH_DAY = 719_162  # Days from 0001-01-01 to 1970-01-01.


@dataclass(frozen=True)
class IsoTimes:
    """``[n] int64`` microseconds, those of local time where ``naive``; 0 where not ``valid``. Masks ``[n] bool``."""

    microseconds: Int64
    naive: Bools
    valid: Bools


def with_offsets_joined(texts: pa.Array) -> pa.Array:
    """``2026-02-01 12:30:15 +0000 UTC`` as ``2026-02-01 12:30:15+0000``; any other text stays as it is."""
    signs = (pc.match_substring(texts, sign) for sign in (" +", " -"))
    if not any(pc.any(found).as_py() for found in signs):
        return texts
    return pc.replace_substring_regex(texts, pattern=_SPACED_OFFSET, replacement=r"\1\2")


def parse_iso(texts: pa.Array) -> IsoTimes:
    """Texts, trimmed, to times. An hour of 24 and a second of 60 are not understood."""
    cells = Cells(texts)
    valid = np.asarray(texts.is_valid(), dtype=bool) & (cells.lengths >= _DATE) & (cells.lengths <= _WIDTH)
    padded = pc.ascii_rpad(without(texts, ~valid).fill_null(""), width=_WIDTH, padding=" ")
    matrix = Cells(padded).data.reshape(-1, _WIDTH)
    times = IsoTimes(np.zeros(len(texts), np.int64), np.zeros(len(texts), bool), valid)
    for start in range(0, len(texts), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = _Block(matrix[rows], cells.lengths[rows], valid[rows])
        microseconds, naive = block.parse()
        times.microseconds[rows], times.naive[rows] = np.where(block.valid, microseconds, 0), naive & block.valid
        valid[rows] = block.valid
    return times


class _Block:
    """Some cells of the same width, and which of them are times as far as they were read."""

    def __init__(self, texts: npt.NDArray[np.uint8], lengths: Int32, valid: Bools) -> None:
        # [width, cells]: row k has byte k of every cell, a blank where the cell is shorter.
        self.bytes = np.ascontiguousarray(texts.T)
        self.lengths = lengths
        self.valid = valid.copy()
        self.columns = np.arange(len(lengths))

    def parse(self) -> tuple[Int64, Bools]:
        """``[n] int64`` microseconds, and which of them are of local time."""
        has_time = self.lengths > _DATE
        has_seconds = self.is_at(_MINUTES, ":") & has_time
        has_fraction = self.is_at(_SECONDS, ".") & has_seconds
        seconds = 86_400 * self.days() + self.seconds_of_day(has_time, has_seconds)
        microseconds, digits = self.fraction(has_fraction)
        end = np.where(has_seconds, _SECONDS + np.where(has_fraction, 1 + digits, 0), _MINUTES)
        end = np.where(has_time, end, _DATE)
        seconds -= 60 * self.offset_minutes(end)
        return seconds * 1_000_000 + microseconds, end == self.lengths

    def is_at(self, place: int, characters: str) -> Bools:
        """``[n] bool``: whether the byte at a place is one of ``characters``."""
        found: Bools = self.bytes[place] == ord(characters[0])
        for character in characters[1:]:
            found |= self.bytes[place] == ord(character)
        return found

    def number(self, place: int, digits: int, where: Bools | None = None) -> Int32:
        """``[n] int32`` number at a place, 0 outside ``where``; cells without these digits are not valid."""
        figures = self.bytes[place : place + digits] - np.uint8(ord("0"))
        fits = (figures < 10).all(axis=0)
        self.valid &= fits if where is None else fits | ~where
        value = np.zeros(len(self.lengths), np.int32)
        for row in figures:
            value = value * 10 + row
        return np.where(fits if where is None else fits & where, value, 0)

    def days(self) -> Int64:
        """``[n] int64`` days since 1970-01-01."""
        year, month, day = self.number(0, 4), self.number(5, 2), self.number(8, 2)
        self.valid &= self.is_at(4, "-") & self.is_at(7, "-") & (year > 0)
        is_leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
        self.valid &= (day >= 1) & (day <= _DAYS_OF_MONTH[month] + (is_leap & (month == 2)))
        before = year - 1
        leaps = before // 4 - before // 100 + before // 400 + (is_leap & (month > 2))
        days: Int64 = 365 * before.astype(np.int64) + leaps + _DAYS_BEFORE_MONTH[month] + day - 1 - _EPOCH_DAY
        return days

    def seconds_of_day(self, has_time: Bools, has_seconds: Bools) -> Int32:
        """``[n] int32`` seconds since midnight."""
        hours, minutes = self.number(11, 2, has_time), self.number(14, 2, has_time)
        seconds = self.number(17, 2, has_seconds)
        self.valid &= ~has_time | (self.is_at(10, "T ") & self.is_at(13, ":"))
        self.valid &= (hours < 24) & (minutes < 60) & (seconds < 60)
        return 3_600 * hours + 60 * minutes + seconds

    def fraction(self, has_fraction: Bools) -> tuple[Int32, Int32]:
        """``[n] int32`` microseconds after the point, and the number of its digits."""
        value, digits = np.zeros(len(self.lengths), np.int32), np.zeros(len(self.lengths), np.int32)
        if not has_fraction.any():
            return value, digits
        goes_on = has_fraction
        for step in range(_LONGEST_FRACTION):
            figure = self.bytes[_SECONDS + 1 + step] - np.uint8(ord("0"))
            goes_on = goes_on & (figure < 10)
            digits += goes_on
            if step < 6:
                value = value * 10 + np.where(goes_on, figure, 0)
        self.valid &= ~has_fraction | (digits > 0)
        return value, digits

    def offset_minutes(self, end: Int64) -> Int32:
        """``[n] int32`` minutes east of UTC, as the text from ``end`` (``[n] int64``) on says."""
        size = self.lengths - end
        self.valid &= size >= 0
        if not size.any():
            return np.zeros(len(size), np.int32)
        tail = [self.bytes[np.minimum(end + step, _WIDTH - 1), self.columns] for step in range(6)]
        names_utc = (size == 1) & (tail[0] == ord("Z"))
        names_utc |= (size == 4) & np.logical_and.reduce([tail[k] == ord(" UTC"[k]) for k in range(4)])
        has_colon = (size == 6) & (tail[3] == ord(":"))
        has_minutes = has_colon | (size == 5)
        zero = np.uint8(ord("0"))
        places = [tail[1], tail[2], np.where(has_colon, tail[4], tail[3]), np.where(has_colon, tail[5], tail[4])]
        figures = np.stack([*places[:2], *(np.where(has_minutes, place, zero) for place in places[2:])]) - zero
        is_west = tail[0] == ord("-")
        is_offset = (figures < 10).all(axis=0) & (is_west | (tail[0] == ord("+"))) & (has_minutes | (size == 3))
        hours, minutes = (10 * figures[k].astype(np.int32) + figures[k + 1] for k in (0, 2))
        is_offset &= (hours < 24) & (minutes < 60)
        self.valid &= (size == 0) | names_utc | is_offset
        return np.where(is_offset, np.where(is_west, -1, 1) * (60 * hours + minutes), 0)
