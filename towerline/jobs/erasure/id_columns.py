"""Which columns and keys of an artifact hold users' ids, and which hold items': by the schema that it carries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.registry.delta_entry import ID_COLUMN

_USER, _ITEM = ("user_id",), ("item_id", "item_ids", "history", ID_COLUMN)
_SCHEMA_FILE = "schema.json"


@dataclass(frozen=True)
class IdColumns:
    """Names of columns and keys: ``users`` hold users' ids and ``items`` items'.

    ``user_values`` and ``item_values`` are the names of vocabulary files whose values are such ids.
    """

    users: tuple[str, ...] = _USER
    items: tuple[str, ...] = _ITEM
    user_values: frozenset[str] = frozenset()
    item_values: frozenset[str] = field(default=frozenset({"items.arrow"}))

    @classmethod
    def of(cls, schema: dict[str, Any]) -> IdColumns:
        """By a data set's schema as JSON."""
        tables, features = schema.get("tables") or {}, schema.get("features") or {}
        users = _names(_USER, tables, "user_id", ("events", "users"))
        items = _names(_ITEM, tables, "item_id", ("events", "items"))
        files = {
            side: frozenset(
                f"{side}.{one['name']}.arrow"
                for one in features.get(side) or []
                if one.get("kind") == "id" or (one.get("column") or one.get("name")) in named
            )
            for side, named in (("user", users), ("item", items))
        }
        # A name that is a user's in one table and an item's in another is looked at as a user's.
        return cls(
            users, tuple(one for one in items if one not in users), files["user"], files["item"] | {"items.arrow"}
        )

    def joined(self, other: IdColumns) -> IdColumns:
        """Names of either."""
        users, items = (tuple(dict.fromkeys(both)) for both in (self.users + other.users, self.items + other.items))
        return IdColumns(
            users,
            tuple(one for one in items if one not in users),
            self.user_values | other.user_values,
            self.item_values | other.item_values,
        )


def _names(own: tuple[str, ...], tables: dict[str, Any], role: str, of: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*own, *(tables[name][role] for name in of if tables.get(name))]))


def id_columns_at(folder: Path, root: Path) -> IdColumns:
    """By the schema in the folder or in the nearest one above it, up to ``root``."""
    for one in (folder, *folder.parents):
        try:
            return IdColumns.of(json.loads((one / _SCHEMA_FILE).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if one == root:
                break
    return IdColumns()
