"""Numbers of a rule in the type of a column: a constant means the same in every comparison.

A column of floats is compared with the constant in its own precision, to which its values were rounded when they were
stored: ``price == 0.1`` finds the .1 of a float32 column. A column of integers is compared exactly.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from index.rules.attributes import Mask

Sign = Literal["<", "<=", ">", ">=", "==", "!="]
Numbers = npt.NDArray[Any]


def constant_in(dtype: np.dtype[Any], constant: float) -> Any:
    """The constant as it is compared with numbers of a type.

    For floats it is rounded to the type, beyond its range to infinity. For integers a whole number becomes an int of
    any size; a fraction or infinity stays a float, which no integer equals.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(as_float(constant))
    if isinstance(constant, float) and constant.is_integer():
        return int(constant)
    return constant


def within_floats(constant: float) -> float:
    """The constant; an integer beyond the range of float64 becomes infinity, which compares alike and can be shown."""
    return constant if math.isfinite(as_float(constant)) else as_float(constant)


def as_float(constant: float) -> float:
    """The nearest float64; infinity beyond its range."""
    try:
        return float(constant)
    except OverflowError:
        return math.inf if constant > 0 else -math.inf


def compared(values: Numbers, sign: Sign, constant: Any) -> Mask:
    """``[n] bool``: the comparison of each of ``values [n]`` with a constant from ``constant_in``."""
    if isinstance(constant, float) and values.dtype.kind in "iu":
        return _compared_with_a_fraction(values, sign, constant)
    result: Mask = _COMPARE[sign](values, constant)
    return result


def is_among(values: Numbers, constants: list[Any]) -> Mask:
    """``[n] bool``: whether each of ``values [n]`` equals one of the constants from ``constant_in``."""
    if values.dtype.kind in "iu":
        bounds = np.iinfo(values.dtype)
        constants = [one for one in constants if isinstance(one, int) and bounds.min <= one <= bounds.max]
    if not constants:
        return np.zeros(len(values), bool)
    return np.isin(values, np.array(constants, values.dtype))


def _compared_with_a_fraction(values: Numbers, sign: Sign, constant: float) -> Mask:
    """An integer is below a fraction if it is at most the whole number below it."""
    if sign in ("==", "!="):
        return np.full(len(values), sign == "!=")
    below = sign in ("<", "<=")
    if math.isinf(constant):
        return np.full(len(values), (constant > 0) == below)
    return compared(values, "<=" if below else ">", math.floor(constant))


_COMPARE: dict[Sign, Any] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
