"""Rejects without traces of forgotten users: their rows are dropped, and texts that name them are not kept.

Reads and returns tables of ``REJECTS``. A reject keeps its place (table, file, row) and its reason, so that whoever has
the source can look there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion import convert
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.tables.erasure.forgotten import Forgotten

# Columns that hold text of the source.
_TEXTS = ("record", "value")
_MALFORMED = "malformed"


def without_texts(rejects: pa.Table, forgotten: Forgotten) -> pa.Table:
    """The rejects, without the texts that name a forgotten user.

    Lines that are no rows (``malformed``) lose their text as soon as anybody is forgotten: nobody knows what they say.
    """
    if len(forgotten) == 0 or len(rejects) == 0:
        return rejects
    kept = np.array(
        [
            reason.split(":")[0] != _MALFORMED and not any(forgotten.holds_text(text) for text in _texts_of(row))
            for reason, row in zip(rejects["reason"].to_pylist(), _rows(rejects), strict=True)
        ],
        bool,
    )
    for name in _TEXTS:
        if name in rejects.column_names:
            texts = [text if keep else None for text, keep in zip(rejects[name].to_pylist(), kept, strict=True)]
            rejects = rejects.set_column(rejects.column_names.index(name), name, pa.array(texts, pa.string()))
    return rejects


def without_users(rejects: pa.Table, forgotten: Forgotten, column: str, id_type: pa.DataType) -> pa.Table:
    """The rejects without the rows of forgotten users and without texts that name them.

    Args:
        rejects: of a table that names a user in each row.
        forgotten: the users.
        column: the table's column of the user's id.
        id_type: type of user ids, int64 or string.
    """
    if len(forgotten) == 0 or len(rejects) == 0:
        return rejects
    users = [_user_of(record, column) for record in rejects["record"].to_pylist()]
    kind = ColumnType.for_ids(id_type)
    own = forgotten.holds(convert(pa.array(users, pa.string()), kind).values)
    return without_texts(rejects.filter(pa.array(~own)), forgotten)


def _rows(rejects: pa.Table) -> list[list[str]]:
    columns = [rejects[name].to_pylist() for name in _TEXTS if name in rejects.column_names]
    return [[text for text in row if text is not None] for row in zip(*columns, strict=True)]


def _texts_of(row: list[str]) -> Iterator[str]:
    """The texts and, where one is JSON, its values as they were before they were quoted."""
    for text in row:
        yield text
        if "\\" in text:
            try:
                waiting = [json.loads(text)]
            except ValueError:
                continue
            while waiting:
                value = waiting.pop()
                if isinstance(value, str):
                    yield value
                elif isinstance(value, dict | list):
                    waiting.extend(value.values() if isinstance(value, dict) else value)


def _user_of(record: str | None, column: str) -> str | None:
    """The user whom a reject's record names, as text."""
    try:
        row = None if record is None else json.loads(record)
    except ValueError:  # Cut short.
        found = re.search(rf'"{re.escape(column)}": "?([^",}}]*)', record or "")
        return None if found is None else found.group(1)
    user = row.get(column) if isinstance(row, dict) else None
    if isinstance(user, float) and user.is_integer():
        return str(int(user))
    return None if user is None else str(user)
