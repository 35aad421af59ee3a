"""Conversion: the cells of tables and the values of requests to declared types, by one set of rules.

``convert`` takes whole columns, ``convert_value`` one value. A cell that does not fit is marked instead of failing its
column. Nothing is guessed: a type is declared, or implied by a column's role. Imports neither Beam, TensorFlow nor
ScaNN.

========== =========================================================================================================
type       what a cell may be
========== =========================================================================================================
string     text as it is; integers, booleans (``true``) and whole floats (``3.0`` reads ``3``) as their text
int64      every integer of 64 bits as a number (whole floats up to 2^53) or as text without leading zeros, ``5007.0``
           too
float64    finite numbers, or their text with the table's decimal mark
bool       true, false, 1, 0; in text also t, f, yes, no, y, n
timestamp  timestamps, dates, ISO text (see ``timestamps.iso``), integers with a declared unit
list       lists; text cut by the declared separator, or arrays in brackets
embedding  the same of numbers
========== =========================================================================================================

Missing are nulls and NaN, and in all types but string the texts in ``texts.MISSING_TEXTS``; blanks around a text count
in strings alone.
"""

from __future__ import annotations

from pipelines.contracts.conversion.columns import convert
from pipelines.contracts.conversion.plain import Converted, is_list, is_number, plain_array, plain_type
from pipelines.contracts.conversion.timestamps.local_times import EARLIEST_US, LATEST_US, US_PER_DAY, utc_us
from pipelines.contracts.conversion.values import convert_cell, convert_value, expected, time_us

__all__ = [
    "EARLIEST_US",
    "LATEST_US",
    "US_PER_DAY",
    "Converted",
    "convert",
    "convert_cell",
    "convert_value",
    "expected",
    "is_list",
    "is_number",
    "plain_array",
    "plain_type",
    "time_us",
    "utc_us",
]
