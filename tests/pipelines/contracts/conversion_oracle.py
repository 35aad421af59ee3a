"""The rules of conversion once more, one cell at a time in plain Python: what the laws of conversion compare with."""

from __future__ import annotations

import datetime
import math
import re
import zoneinfo
from decimal import Decimal
from typing import Any

# A cell that cannot be converted; None is a missing one.
WRONG = object()
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "\\n")
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
US = datetime.timedelta(microseconds=1)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z| UTC| ?[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NAMED_ZONE = re.compile(r"(.* [+-]\d\d(?::?\d\d)?) [A-Z]{3,5}", re.ASCII)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def string(cell: Any) -> Any:
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float):
        if math.isnan(cell):
            return None
        if math.isinf(cell):
            return WRONG
        return str(int(cell)) if cell == int(cell) and abs(cell) <= 2**53 else repr(cell)
    if isinstance(cell, Decimal):
        return str(int(cell)) if cell == int(cell) else format(cell.normalize(), "f")
    return str(cell)


def _trimmed(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    return None if text.lower() in MISSING else text


def int64(cell: Any, decimal: str = ".") -> Any:
    cell = _trimmed(cell)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, str):
        found = re.fullmatch(rf"(-?(?:0|[1-9][0-9]*))(?:{re.escape(decimal)}0+)?", cell)
        if found is None:
            return WRONG
        number = int(found[1])
    elif isinstance(cell, float):
        if math.isinf(cell) or cell != int(cell) or abs(cell) > 2**53:
            return WRONG
        number = int(cell)
    elif isinstance(cell, int | Decimal):
        if cell != int(cell):
            return WRONG
        number = int(cell)
    else:
        return WRONG
    return number if -(2**63) <= number < 2**63 else WRONG


def float64(cell: Any, decimal: str = ".") -> Any:
    cell = _trimmed(cell)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, str):
        if decimal == "," and "." in cell:
            return WRONG
        cell = cell.replace(decimal, ".")
        if not _FLOAT.fullmatch(cell):
            return WRONG
    number = float(cell)
    return number if math.isfinite(number) else WRONG


def boolean(cell: Any) -> Any:
    cell = _trimmed(cell)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, str):
        words = {"true": True, "t": True, "yes": True, "y": True, "1": True, "1.0": True}
        words |= {"false": False, "f": False, "no": False, "n": False, "0": False, "0.0": False}
        return words.get(cell.lower(), WRONG)
    return bool(cell) if cell in (0, 1) else WRONG


def timestamp(cell: Any, unit: str | None = None, zone: str | None = None) -> Any:
    """Microseconds since 1970."""
    cell = _trimmed(cell)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    us = _moment(cell, unit, zone)
    first, last = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (1990, 2100))
    return us if us is not WRONG and (first - EPOCH) // US <= us < (last - EPOCH) // US else WRONG


def _moment(cell: Any, unit: str | None, zone: str | None) -> Any:
    if isinstance(cell, str) and (named := _NAMED_ZONE.fullmatch(cell)):
        cell = named[1]
    if isinstance(cell, str) and (found := _TIME.fullmatch(cell)):
        return _of_text(*found.groups(), zone=zone)
    if isinstance(cell, datetime.datetime):
        return (cell - EPOCH) // US if cell.tzinfo else local(cell, zone)
    if isinstance(cell, datetime.date):
        return local(datetime.datetime(cell.year, cell.month, cell.day), zone)
    if unit is None or isinstance(cell, bool):
        return WRONG
    number = int64(cell)
    # The shortest decimal of a float; a float beyond 2^53 is not exact.
    is_exact = isinstance(cell, str | Decimal) or (isinstance(cell, float) and cell <= 2**53)
    if number is WRONG and is_exact and re.fullmatch(r"(0|[1-9][0-9]{0,18})\.[0-9]+", str(cell), re.ASCII):
        return int(Decimal(str(cell)).scaleb(6) / PER_SECOND[unit])
    return WRONG if number is WRONG else number * 10**6 // PER_SECOND[unit]  # type: ignore[index]


def _of_text(
    date: str, clock: str | None, seconds: str | None, fraction: str | None, offset: str | None, zone: Any
) -> Any:
    try:
        moment = datetime.datetime.fromisoformat(f"{date}T{clock or '00:00'}:{seconds or '00'}")
    except ValueError:
        return WRONG
    moment += datetime.timedelta(microseconds=int((fraction or "0").ljust(6, "0")[:6]))
    if offset is None:
        return local(moment, zone)
    minutes = 0
    if offset not in ("Z", " UTC"):
        offset = offset.strip()
        digits = offset[1:].replace(":", "").ljust(4, "0")
        if int(digits[:2]) > 23 or int(digits[2:]) > 59:
            return WRONG
        minutes = (int(digits[:2]) * 60 + int(digits[2:])) * (-1 if offset[0] == "-" else 1)
    return (moment.replace(tzinfo=datetime.UTC) - EPOCH) // US - minutes * 60_000_000


def local(moment: datetime.datetime, zone: str | None) -> int:
    """The first moment at which clocks in the zone show this time, or that at which they skip it."""
    info = datetime.UTC if zone is None else zoneinfo.ZoneInfo(zone)
    naive = moment.replace(tzinfo=None)
    early, late = (
        (naive - offset).replace(tzinfo=datetime.UTC)
        for offset in sorted(
            (naive.replace(tzinfo=info, fold=fold).utcoffset() or datetime.timedelta() for fold in (0, 1)), reverse=True
        )
    )
    for candidate in (early, late):
        if candidate.astimezone(info).replace(tzinfo=None) == naive:
            return (candidate - EPOCH) // US
    low, high = (early - EPOCH) // US, (late - EPOCH) // US  # Skipped: the change is between the two.
    before = (EPOCH + low * US).astimezone(info).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if (EPOCH + middle * US).astimezone(info).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high
