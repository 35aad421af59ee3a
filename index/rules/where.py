"""The ``where`` expression: which items a call may return, by their attributes.

The grammar is a subset of Python's, and Python's own parser reads it:

    coupon_live and median_price < 10
    country in ("US", "CA") and not department == "GROCERY"
    5 <= price < 20 or price is None
    "US" in countries                        (an attribute that is a list)
    item_id in (1001, "1002")                (of an id, a number and its text are the same)

A comparison with a missing value is never true, and neither is its negation: an item passes only on known values.
``is None`` and ``is not None`` ask for missing values. Text is compared with ``==``, ``!=`` and ``in`` only.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from index.inference.request_ids import one_id
from index.rules.attributes import Attributes, Column, Mask
from index.rules.numbers import Sign, compared, constant_in, is_among, within_floats
from pipelines.contracts.conversion import time_us
from pipelines.contracts.conversion.column_type import INT64, STRING
from pipelines.contracts.errors import SchemaError

MAX_LENGTH = 100_000
_MAX_DEPTH = 60

_NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}
_SIGNS: dict[type[ast.cmpop], Sign] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def mask_of(where: str, attributes: Attributes) -> Mask:
    """Returns ``[items] bool``: the items that pass.

    Raises:
        SchemaError: the expression cannot be read, names an unknown attribute, or compares incompatible types.
    """
    tree = parse(where)
    return _Compiler(where.strip(), attributes).mask(tree, negated=False, depth=0)


def parse(where: str) -> ast.expr:
    """Returns the expression's syntax tree.

    Raises:
        SchemaError: it is not text, too long, or not an expression.
    """
    if not isinstance(where, str):
        raise SchemaError(f"where: expected text such as 'price < 10', got {where!r:.80}")
    if len(where) > MAX_LENGTH:
        raise SchemaError(
            f"where: expected at most {MAX_LENGTH} characters, got {len(where)}. Put a long set into an attribute."
        )
    try:
        return ast.parse(where.strip(), mode="eval").body
    except SyntaxError as err:
        raise SchemaError(f"where: cannot be read at column {err.offset}: {err.msg}: {where!r:.200}") from err
    except (ValueError, RecursionError, MemoryError) as err:
        raise SchemaError(f"where: cannot be read ({err}): {where!r:.200}") from err


class _Compiler:
    """One expression over one catalogue. Negations are pushed down to the comparisons."""

    def __init__(self, where: str, attributes: Attributes) -> None:
        self._where = where
        self._attributes = attributes

    def mask(self, node: ast.expr, *, negated: bool, depth: int) -> Mask:
        if depth > _MAX_DEPTH:
            raise self._wrong(f"nested deeper than {_MAX_DEPTH}")
        if isinstance(node, ast.BoolOp):
            both = isinstance(node.op, ast.And) != negated
            combined = self.mask(node.values[0], negated=negated, depth=depth + 1)
            for value in node.values[1:]:
                other = self.mask(value, negated=negated, depth=depth + 1)
                combined = combined & other if both else combined | other
            return combined
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.mask(node.operand, negated=not negated, depth=depth + 1)
        if isinstance(node, ast.Compare):
            return self._comparisons(node, negated=negated)
        if isinstance(node, ast.Name):
            return self._flag(self._attributes.column(node.id), negated=negated)
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return np.full(self._attributes.items, node.value != negated)
        raise self._wrong(f"{self._text(node)} is neither a comparison nor a true-or-false attribute")

    def _flag(self, column: Column, *, negated: bool) -> Mask:
        if column.kind != "truth" or column.is_list:
            raise self._wrong(f"{column.name!r} is {_type_of(column)}: compare it with something")
        return _where_known(column, column.values != negated)

    def _comparisons(self, node: ast.Compare, *, negated: bool) -> Mask:
        sides = [node.left, *node.comparators]
        masks = [
            self._comparison(left, type(op), right, negated=negated)
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        combined = masks[0]
        for mask in masks[1:]:
            combined = combined | mask if negated else combined & mask
        return combined

    def _comparison(self, left: ast.expr, op: type[ast.cmpop], right: ast.expr, *, negated: bool) -> Mask:
        if op in (ast.In, ast.NotIn) and isinstance(right, ast.Name):
            column = self._attributes.column(right.id)
            if not column.is_list:
                raise self._wrong(f"{column.name!r} is {_type_of(column)}, not a list: write {column.name} == ...")
            inside = self._any_element(column, [self._constant(left)])
            return _has_list(column, inside, wanted=(op is ast.In) != negated)
        if not isinstance(left, ast.Name):
            if not isinstance(right, ast.Name) or op not in _MIRRORED:
                raise self._wrong("a comparison needs an attribute on one side and a constant on the other")
            left, op, right = right, _MIRRORED[op], left
        column = self._attributes.column(left.id)
        op = _NEGATED[op] if negated else op
        if op in (ast.Is, ast.IsNot):
            return self._missing(column, right, is_null=op is ast.Is)
        if op in (ast.In, ast.NotIn):
            return self._membership(column, right, inside=op is ast.In)
        if column.is_list:
            raise self._wrong(f"{column.name!r} is a list: write ... in {column.name}")
        return self._compare(column, op, self._constant(right))

    def _missing(self, column: Column, right: ast.expr, *, is_null: bool) -> Mask:
        if self._constant(right) is not None:
            raise self._wrong(f"after 'is', only None is allowed: write {column.name} == ...")
        if column.is_list:
            has = np.zeros(column.items, bool)
            has[column.owners] = True
            passing: Mask = has != is_null
            return passing
        known = np.ones(column.items, bool) if column.known is None else column.known
        return np.asarray(known != is_null)

    def _membership(self, column: Column, right: ast.expr, *, inside: bool) -> Mask:
        if not isinstance(right, ast.Tuple | ast.List | ast.Set):
            raise self._wrong(f"after 'in', expected a list of constants, such as ({column.name} in (1, 2))")
        wanted = [self._constant(element) for element in right.elts]
        if column.is_list:
            return _has_list(column, self._any_element(column, wanted), wanted=inside)
        values = [self._value(column, constant) for constant in wanted]
        return _where_known(column, _is_in(column, values) == inside)

    def _any_element(self, column: Column, wanted: list[object]) -> Mask:
        """``[items] bool``: whether a list attribute has one of the values."""
        hit = _is_in(column, [self._value(column, constant) for constant in wanted])
        if column.known is not None:
            hit = hit & column.known
        found = np.zeros(column.items, bool)
        assert column.owners is not None
        found[column.owners[hit]] = True
        return found

    def _compare(self, column: Column, op: type[ast.cmpop], constant: object) -> Mask:
        if column.kind in ("text", "truth") and op not in (ast.Eq, ast.NotEq):
            raise self._wrong(f"{column.name!r} is {_type_of(column)}: expected == or !=, got {_SIGNS[op]}")
        return _where_known(column, compared(column.values, _SIGNS[op], self._value(column, constant)))

    def _value(self, column: Column, constant: object) -> Any:
        """The constant in the column's type: a number, a truth value, a code (-2 for an unknown text), or a time."""
        if column.is_id:
            constant = _as_id(column, constant)
        if column.kind == "text" and isinstance(constant, str):
            assert column.code_of_text is not None
            return column.code_of_text.get(constant, -2)
        if column.kind == "truth" and isinstance(constant, bool):
            return constant
        if column.kind == "number" and isinstance(constant, int | float) and not isinstance(constant, bool):
            return constant_in(column.values.dtype, constant)
        if column.kind == "time" and isinstance(constant, str):
            return time_us(constant, f"where: {column.name}")
        raise self._wrong(f"{column.name!r} is {_type_of(column)}; it cannot be compared with {constant!r:.60}")

    def _constant(self, node: ast.expr) -> object:
        inner, sign = node, 1
        while isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.USub | ast.UAdd):
            sign = -sign if isinstance(inner.op, ast.USub) else sign
            inner = inner.operand
        if isinstance(inner, ast.Constant):
            if isinstance(inner.value, int | float) and not isinstance(inner.value, bool):
                return within_floats(sign * inner.value)
            if inner is node and isinstance(inner.value, str | bool | None):
                return inner.value
        raise self._wrong(f"{self._text(node)} is not a constant: expected a number, text or truth value")

    def _text(self, node: ast.expr) -> str:
        """The part of the expression that a node was read from. Writing a deep one out of its tree may not end."""
        return repr(ast.get_source_segment(self._where, node))[:80]

    def _wrong(self, what: str) -> SchemaError:
        return SchemaError(f"where: {what} (in {self._where!r:.200})")


def _as_id(column: Column, constant: object) -> object:
    """The constant in the form of the column's ids: text for numbers and numbers for text are converted."""
    if column.kind == "number" and isinstance(constant, str):
        return one_id(constant, INT64, f"where: {column.name}")
    if column.kind == "text" and isinstance(constant, int | float) and not isinstance(constant, bool):
        return one_id(constant, STRING, f"where: {column.name}")
    return constant


def _where_known(column: Column, result: Mask) -> Mask:
    return result if column.known is None else result & column.known


def _has_list(column: Column, inside: Mask, *, wanted: bool) -> Mask:
    """An item without values has no known list: it passes neither ``in`` nor ``not in``."""
    if wanted:
        return inside
    has = np.zeros(column.items, bool)
    has[column.owners] = True
    return has & ~inside


def _is_in(column: Column, values: list[Any]) -> Mask:
    if column.kind == "text":
        assert column.code_of_text is not None
        # The last place is for null (code -1); -2, an unknown text, is left out.
        listed = np.zeros(len(column.code_of_text) + 1, bool)
        listed[[code for code in values if code >= 0]] = True
        mask: Mask = listed[column.values]
        return mask
    return is_among(column.values, values)


def _type_of(column: Column) -> str:
    kind = {"number": "a number", "truth": "true or false", "text": "text", "time": "a time"}[column.kind]
    return f"a list ({kind} each)" if column.is_list else kind
