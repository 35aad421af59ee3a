"""The type of a column, from its evidence: the same for the same cells, whatever format they come from."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import EARLIEST_US, LATEST_US, convert
from pipelines.contracts.conversion.column_type import FLOAT64, INT64, STRING, TIMESTAMP, ColumnType, TimeUnit
from towerline.jobs.init.tables.columns import BOOL, ColumnEvidence, Kind, ListEvidence, Numbers

# Share of cells that may be wrong for a type: half of what a run accepts as rejects by default.
MOST_WRONG = 0.005
_FEW = 100
_US_PER_UNIT: dict[TimeUnit, float] = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_TIME_WORDS = re.compile(
    r"(time|date|day|timestamp|created|updated|modified|since|seen|until|expires?|(^|_)(ts|at|on|dt))s?$"
)
_BOOL_WORDS = re.compile(
    r"^(is|has|can|was)_|(^|_)(live|active|enabled|available|flag|stock|in_stock|on_sale|promoted)$"
)
# Separators, with how often a value must come again on average: the more, the commoner the character is in prose.
# Those with blanks come first: cut by the character alone, values would keep the blanks.
_SEPARATORS = {
    " | ": 1.3, "|": 1.3, "; ": 2.0, ";": 2.0, " > ": 2.0, ">": 2.0, ", ": 3.0, ",": 3.0, " / ": 3.0, "/": 3.0,
}  # fmt: skip
_VECTOR_SEPARATORS = (",", ";", "|", " ")


@dataclass(frozen=True)
class Typed:
    """A column with its type. ``kind`` is how its cells were tried (None: as texts), ``lists`` what lists hold."""

    evidence: ColumnEvidence
    type: ColumnType
    kind: Kind | None
    lists: ListEvidence | None = None

    @property
    def name(self) -> str:
        """The column."""
        return self.evidence.name

    @property
    def wrong(self) -> int:
        """Cells that do not fit the type."""
        return 0 if self.kind is None else self.evidence.tried[self.kind].wrong

    @property
    def missing_share(self) -> float:
        """Share of the cells that are missing in this type."""
        return self.evidence.missing(self.kind) / max(self.evidence.rows, 1)

    @property
    def distinct(self) -> int:
        """Number of distinct values."""
        return self.lists.values.distinct.count if self.lists is not None else self.evidence.distinct.count

    @property
    def is_number(self) -> bool:
        """Whether the values have an order and a size."""
        return self.type.type in ("int64", "float64")

    @property
    def numbers(self) -> Numbers:
        """The cells as numbers."""
        return self.evidence.numbers[self.kind if self.kind in self.evidence.numbers else "float64"]


def type_of(column: ColumnEvidence, decimal: str = ".") -> Typed | None:
    """The type that the cells have; None where there is nothing to use: no cell, or cells of a nested type.

    Args:
        column: the evidence.
        decimal: the table's decimal mark.
    """
    if column.unreadable or column.present == 0:
        return None
    if column.nested or column.fits("list"):
        return _typed_list(column, column.lists, None) if column.lists is not None else None
    number = "float64" if decimal == "." else "decimal comma"
    says_bool = column.bools > 0 or not column.fits("int64") or _BOOL_WORDS.search(column.name.lower()) is not None
    if column.fits("bool") and says_bool and column.distinct.count > 1:
        return Typed(column, BOOL, "bool")
    # Few values that are mostly numbers, such as sizes, are names; of many, the others are mistakes.
    most_wrong = 0.0 if column.distinct.count <= _FEW else MOST_WRONG
    whole, real = column.tried["int64"], column.tried[number]
    if column.leading_zeros or _overflows(column):
        return Typed(column, STRING, None)
    if column.fits("int64", most_wrong) and whole.wrong <= real.wrong:
        return _typed_integer(column)
    if column.fits("timestamp", most_wrong):
        return Typed(column, TIMESTAMP, "timestamp")
    if column.fits(number, most_wrong):
        return Typed(column, FLOAT64, number)
    return _separated(column) or (Typed(column, STRING, None) if _has_text(column) else None)


def _overflows(column: ColumnEvidence) -> bool:
    """Whether the cells are whole numbers too large for an int64: codes, which a float would round."""
    digits = all(re.fullmatch(r"-?[0-9]+", text) for text in column.texts)
    whole = column.integers == column.present or (bool(column.texts) and digits)
    return whole and not column.fits("int64")


def _has_text(column: ColumnEvidence) -> bool:
    return column.present > column.empty


def _typed_integer(column: ColumnEvidence) -> Typed:
    unit = time_unit(column)
    if unit is not None and _TIME_WORDS.search(column.name.lower()):
        return Typed(column, ColumnType(type="timestamp", unit=unit), "int64")
    return Typed(column, INT64, "int64")


def time_unit(column: ColumnEvidence) -> TimeUnit | None:
    """The unit in which all integers of a column lie between 1990 and 2100; the units' ranges do not overlap."""
    numbers = column.numbers["float64"]
    for unit, factor in _US_PER_UNIT.items():
        if numbers.least * factor >= EARLIEST_US and numbers.most * factor < LATEST_US:
            return unit
    return None


def decimal_of(columns: list[ColumnEvidence]) -> tuple[str, str]:
    """The decimal mark of a text table, and a doubt: the columns that only a comma makes numbers, or not."""
    comma = [one.name for one in columns if _only(one, "decimal comma", "float64")]
    point = [one.name for one in columns if _only(one, "float64", "decimal comma")]
    if not comma:
        return ".", ""
    doubt = ""
    thousands = [one.name for one in columns if one.name in comma and _may_be_thousands(one)]
    if point:
        doubt = f"{', '.join(comma)} have decimal commas, {', '.join(point)} decimal points"
    elif len(thousands) == len(comma):
        doubt = f"each comma in {', '.join(comma)} has three digits after it, as thousands have"
    return ("," if len(comma) >= len(point) else "."), doubt


def _only(column: ColumnEvidence, kind: Kind, other: Kind) -> bool:
    return column.fits(kind, MOST_WRONG) and not column.fits(other, MOST_WRONG)


def _may_be_thousands(column: ColumnEvidence) -> bool:
    return all(re.fullmatch(r"\d+(,\d{3})*", text.strip().lstrip("+-")) for text in column.texts)


def _typed_list(column: ColumnEvidence, lists: ListEvidence, separator: str | None) -> Typed:
    given = {} if separator is None else {"separator": separator}
    if lists.is_vector():
        return Typed(column, ColumnType(type="embedding", **given), "list", lists)
    whole = lists.values.fits("int64") and not lists.values.leading_zeros
    return Typed(column, ColumnType(type="list", of="int64" if whole else "string", **given), "list", lists)


def _separated(column: ColumnEvidence) -> Typed | None:
    """A list in a text: a separator that cuts the cells into few values which come again, or into vectors."""
    for separator in _VECTOR_SEPARATORS:
        lists = _cut(column, separator, most=200)
        if lists is not None and lists.is_vector():
            return _joined(column, _cut(column, separator), separator)
    best: tuple[float, str] | None = None
    for separator in _SEPARATORS:
        score = _repeats(column, separator)
        if score > 0 and (best is None or score > 1.5 * best[0]):
            best = score, separator
    return None if best is None else _joined(column, _cut(column, best[1]), best[1])


def _joined(column: ColumnEvidence, lists: ListEvidence | None, separator: str) -> Typed | None:
    if lists is None:
        return None
    typed = _typed_list(column, lists, separator)
    return Typed(column, typed.type, None, lists)


def _cut(column: ColumnEvidence, separator: str, most: int | None = None) -> ListEvidence | None:
    texts = [text for text in column.texts if text][:most]
    if not texts:
        return None
    kind = ColumnType(type="list", separator=separator)
    cut = convert(pa.array(texts, pa.string()), kind).values
    lists = ListEvidence(ColumnEvidence(f"values of {column.name}"))
    lists.add(cut.drop_null())
    # As many lengths as rows: a text may be there often.
    lists.lengths = Numbers()
    rows = np.array([column.texts[text] for text in texts])[np.asarray(cut.is_valid(), dtype=bool)]
    lists.lengths.add(np.repeat(np.asarray(pc.list_value_length(cut.drop_null()), np.float64), rows))
    return lists


def _repeats(column: ColumnEvidence, separator: str) -> float:
    """How often the values between separators come again over the distinct cells; 0 where they are no list."""
    texts = [text for text in column.texts if text]
    holding = [text for text in texts if separator in text]
    if len(holding) < max(3, len(texts) // 5) or any("://" in text for text in holding[:20]):
        return 0.0
    parts = [part.strip() for text in texts for part in text.split(separator)]
    values = set(parts)
    wordy = sum(len(value.split()) for value in values) / len(values)
    repeats = len(parts) / len(values)
    few = separator.strip() == "|" or len(values) < 0.8 * len(texts)
    is_list = repeats >= _SEPARATORS[separator] and wordy <= 3.0 and few
    return repeats if is_list else 0.0


def moment_of(us: float) -> datetime.datetime:
    """Microseconds UTC as a datetime."""
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=us)


def range_us(typed: Typed) -> tuple[float, float]:
    """The first and the last moment of a timestamp column, in microseconds UTC."""
    kind, factor = ("timestamp", 1.0) if typed.type.unit is None else ("float64", _US_PER_UNIT[typed.type.unit])
    numbers = typed.evidence.numbers[kind]
    return numbers.least * factor, numbers.most * factor
