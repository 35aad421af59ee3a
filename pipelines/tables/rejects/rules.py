"""The rules of ``[validation.columns]``, applied to columns in their types: every format gives the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion import convert, expected, is_list
from pipelines.contracts.conversion.column_type import FLOAT64, STRING
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import ColumnRule
from pipelines.tables.rejects.checks import Checks


def check_columns(checks: Checks, column_of: Callable[[str], pa.Array], rules: Mapping[str, ColumnRule]) -> None:
    """Applies the schema's rules, column by column in the order of the TOML.

    Args:
        checks: what is wrong with the batch.
        column_of: a column in its type, by its name.
        rules: by column.

    Raises:
        SchemaError: a rule compares texts, and the column's type has none.
    """
    for name, rule in rules.items():
        column = column_of(name)
        null = np.asarray(column.is_null(), dtype=bool)
        if rule.nullable is False:
            checks.reject(null, "null", name, "a value")
        if rule.min is not None or rule.max is not None:
            _check_range(checks, column, name, rule)
        if rule.max_length is not None:
            unit = "values" if is_list(column.type) else "characters"
            bad = _lengths(column, name) > rule.max_length
            checks.reject(bad, "length", name, f"at most {rule.max_length:,} {unit}")
        if rule.allowed is not None:
            allowed = pc.is_in(_as_text(column, name), value_set=pa.array(rule.allowed, pa.string()))
            bad = ~np.asarray(allowed, dtype=bool) & ~null
            checks.reject(bad, "allowed", name, f"one of {', '.join(map(repr, rule.allowed))}")


def _check_range(checks: Checks, column: pa.Array, name: str, rule: ColumnRule) -> None:
    converted = convert(column, FLOAT64)
    checks.reject(converted.wrong, "type", name, expected(FLOAT64))
    numbers = np.asarray(converted.values.fill_null(np.nan), np.float64)
    with np.errstate(invalid="ignore"):
        outside: Bools = np.zeros(len(numbers), bool)
        if rule.min is not None:
            outside |= numbers < rule.min
        if rule.max is not None:
            outside |= numbers > rule.max
    bounds = [] if rule.min is None else [f"≥ {rule.min:g}"]
    bounds += [] if rule.max is None else [f"≤ {rule.max:g}"]
    checks.reject(outside, "range", name, " and ".join(bounds))


def _lengths(column: pa.Array, name: str) -> npt.NDArray[np.int64]:
    if pa.types.is_nested(column.type):
        lengths = pc.list_value_length(column)
    else:
        lengths = pc.utf8_length(_as_text(column, name))
    return np.asarray(pc.fill_null(lengths, 0), np.int64)


def _as_text(column: pa.Array, name: str) -> pa.Array:
    if pa.types.is_nested(column.type):
        raise SchemaError(
            f"validation.columns: column {name!r} of type {column.type} has no text to compare. Remove the rule."
        )
    return convert(column, STRING).values
