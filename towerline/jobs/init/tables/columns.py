"""What the cells of a column show, gathered over the whole table in batches: a ``ColumnEvidence`` per column.

For each type it counts the cells that would not convert, by the conversion that the jobs use. So a type proposed here
is one that a run takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Float64, Int64
from pipelines.contracts.conversion import Converted, convert, is_list, plain_array
from pipelines.contracts.conversion.column_type import FLOAT64, INT64, LIST, TIMESTAMP, ColumnType
from towerline.jobs.init.tables.sketch import Sketch, hashes_of

Kind = str
BOOL = ColumnType(type="bool")
# The types that are tried on every column, and the mark of their decimals.
TRIED: dict[Kind, tuple[ColumnType, str]] = {
    "int64": (INT64, "."),
    "float64": (FLOAT64, "."),
    "decimal comma": (FLOAT64, ","),
    "bool": (BOOL, "."),
    "timestamp": (TIMESTAMP, "."),
    "list": (LIST, "."),
}
# A type is given up when more cells than this, and more than a tenth of those seen, are wrong.
_GIVEN_UP = 10_000
MOST_VALUES = 5_000
MOST_TEXTS = 20_000
MOST_NUMBERS = 200_000


@dataclass
class Tried:
    """How a type fared: the cells that it cannot hold, one of them, and the cells that it takes for missing."""

    wrong: int = 0
    example: str = ""
    missing: int = 0
    alive: bool = True


@dataclass
class Numbers:
    """Range and sample of the cells that are numbers or moments.

    The sample is every ``step``-th number, whatever the batches: the same for the same column from any format.
    """

    least: float = np.inf
    most: float = -np.inf
    step: int = 1
    seen: int = 0
    sample: Float64 = field(default_factory=lambda: np.zeros(0))

    def add(self, values: Float64) -> None:
        """Adds ``[n] float64`` finite numbers, one per row."""
        if len(values) == 0:
            return
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        self.sample = np.concatenate([self.sample, values[-self.seen % self.step :: self.step]])
        self.seen += len(values)
        while len(self.sample) > MOST_NUMBERS:
            self.step *= 2
            self.sample = self.sample[::2]

    @property
    def values(self) -> Float64:
        """``[kept] float64``, sorted."""
        return np.sort(self.sample)


@dataclass
class ColumnEvidence:
    """One column of a table, as its cells show it."""

    name: str
    rows: int = 0
    nulls: int = 0
    empty: int = 0
    tried: dict[Kind, Tried] = field(default_factory=lambda: {kind: Tried() for kind in TRIED})
    distinct: Sketch = field(default_factory=Sketch)
    # Cells by value, most of them, while there are few; None once there are many.
    counts: dict[str, int] | None = field(default_factory=dict)
    # Distinct texts, of very many the first ones.
    texts: dict[str, int] = field(default_factory=dict)
    leading_zeros: int = 0
    bools: int = 0
    # Whole numbers of a file that declares them so, and of which an int64 cannot hold all.
    integers: int = 0
    characters: int = 0
    words: int = 0
    # The cells as numbers, by the type that reads them; moments in microseconds UTC.
    numbers: dict[Kind, Numbers] = field(
        default_factory=lambda: {kind: Numbers() for kind in ("float64", "decimal comma", "timestamp")}
    )
    nested: bool = False
    unreadable: str = ""
    lists: ListEvidence | None = None

    def add(self, column: pa.Array | pa.ChunkedArray) -> None:
        """Adds the cells of one batch."""
        array = plain_array(column)
        self.rows += len(array)
        self.nulls += array.null_count
        array = array.drop_null() if array.null_count else array
        if len(array) == 0:
            return
        if is_list(array.type) and not pa.types.is_nested(array.type.value_type):
            self.nested = True
            self._add_lists(array)
        elif pa.types.is_nested(array.type) or pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
            self.unreadable = str(array.type)
        else:
            self._add_cells(array)

    def _add_cells(self, array: pa.Array) -> None:
        encoded = array.dictionary_encode()
        values, places = encoded.dictionary, np.asarray(encoded.indices, np.int64)
        counts = np.bincount(places, minlength=len(values))
        self.distinct.add(hashes_of(values))
        self._count(values, counts)
        if pa.types.is_string(values.type):
            self._add_texts(values, counts)
        else:
            self.tried["decimal comma"].alive = False
            self.bools += len(array) if pa.types.is_boolean(array.type) else 0
            self.integers += len(array) if _is_whole(array.type) else 0
        for kind, converted in self._try(values, counts):
            if kind in self.numbers:
                _add_numbers(self.numbers[kind], converted.values, places)
            elif kind == "list":
                self._add_lists(converted.values.take(encoded.indices).drop_null())

    def _try(self, values: pa.Array, counts: Int64) -> Iterator[tuple[Kind, Converted]]:
        most = max(_GIVEN_UP, (self.rows - self.nulls) // 10)
        for kind, (column_type, decimal) in TRIED.items():
            tried = self.tried[kind]
            if not tried.alive:
                continue
            converted = convert(values, column_type, decimal=decimal)
            tried.wrong += int(counts[converted.wrong].sum())
            tried.missing += int(counts[converted.null].sum())
            if converted.wrong.any() and not tried.example:
                tried.example = str(values[int(np.flatnonzero(converted.wrong)[0])].as_py())
            tried.alive = tried.wrong <= most
            if tried.alive and not converted.wrong.all():
                yield kind, converted

    def _add_texts(self, values: pa.Array, counts: Int64) -> None:
        self.empty += int(counts[np.asarray(pc.equal(values, ""), dtype=bool)].sum())
        zeros = np.asarray(pc.match_substring_regex(values, r"^-?0[0-9]+$"), dtype=bool)
        self.leading_zeros += int(counts[zeros].sum())
        self.characters += int((np.asarray(pc.utf8_length(values), np.int64) * counts).sum())
        self.words += int((np.asarray(pc.count_substring_regex(values, r"\S+"), np.int64) * counts).sum())
        if len(self.texts) < MOST_TEXTS:
            for text, count in zip(values.slice(0, MOST_TEXTS).to_pylist(), counts[:MOST_TEXTS].tolist(), strict=True):
                if text in self.texts or len(self.texts) < MOST_TEXTS:
                    self.texts[text] = self.texts.get(text, 0) + count

    def _count(self, values: pa.Array, counts: Int64) -> None:
        if self.counts is None:
            return
        if len(values) > MOST_VALUES:
            self.counts = None
            return
        for value, count in zip(values.to_pylist(), counts.tolist(), strict=True):
            text = text_of(value)
            self.counts[text] = self.counts.get(text, 0) + count
        if len(self.counts) > MOST_VALUES:
            self.counts = None

    def _add_lists(self, lists: pa.Array) -> None:
        if self.lists is None:
            self.lists = ListEvidence(ColumnEvidence(f"values of {self.name}"))
        self.lists.add(lists)

    @property
    def present(self) -> int:
        """Cells that are not missing, as a text."""
        return self.rows - self.nulls

    def missing(self, kind: Kind | None = None) -> int:
        """Cells that are missing in a type of that kind; None: in a text, of which only no text is missing."""
        return self.nulls + (0 if kind is None or self.nested else self.tried[kind].missing)

    def fits(self, kind: Kind, most_wrong: float = 0.0) -> bool:
        """Whether a type holds all cells but a share of ``most_wrong``, and any cell at all."""
        tried = self.tried[kind]
        held = self.present - tried.missing
        return not self.nested and tried.alive and held > 0 and tried.wrong <= most_wrong * held and tried.wrong < held

    @property
    def mean_words(self) -> float:
        """Words of a text."""
        return self.words / max(self.present, 1)

    @property
    def mean_characters(self) -> float:
        """Characters of a text."""
        return self.characters / max(self.present, 1)

    @property
    def unique(self) -> bool:
        """Whether no value occurs twice."""
        return self.present > 0 and self.distinct.exact and self.distinct.count == self.present


@dataclass
class ListEvidence:
    """Cells that hold several values."""

    values: ColumnEvidence
    cells: int = 0
    shortest: int = 1 << 30
    longest: int = 0
    lengths: Numbers = field(default_factory=Numbers)

    def add(self, lists: pa.Array) -> None:
        """Adds ``[n]`` lists without nulls."""
        lengths = np.asarray(pc.list_value_length(lists), np.int64)
        if len(lengths) == 0:
            return
        self.cells += len(lengths)
        self.shortest, self.longest = min(self.shortest, int(lengths.min())), max(self.longest, int(lengths.max()))
        self.lengths.add(lengths.astype(np.float64))
        self.values.add(pc.list_flatten(lists))

    def is_vector(self) -> bool:
        """Whether the cells are vectors of one length: at least three numbers, not all of them whole."""
        whole = self.values.fits("int64")
        return 3 <= self.shortest == self.longest and self.values.fits("float64") and not whole


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0))


def text_of(value: object) -> str:
    """A cell as its canonical text: whole floats and bools as texts of a file would have them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _add_numbers(into: Numbers, values: pa.Array, places: Int64) -> None:
    plain = values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values
    present = np.asarray(plain.is_valid(), dtype=bool)
    numbers = np.asarray(plain.cast(pa.float64(), safe=False).fill_null(0.0), np.float64)
    into.add(numbers[places][present[places]])
