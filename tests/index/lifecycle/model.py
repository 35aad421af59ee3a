"""The model: what a registry with changes must serve, in as few lines as can be checked by reading.

Knows nothing of the product but the rules: a version is the tables as they were read; changes made after that are
applied to it in their order; a pause is in force on every version. Vectors and scores are recomputed for every answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# A row of the catalogue: the ad's columns, its train events ("frequency") and its counted events ("sales_7d").
Row = dict[str, Any]
Change = tuple[str, int, Row]


@dataclass(frozen=True)
class Published:
    """A version: the tables it was made of, and how many changes had been made when they were read."""

    tables: dict[int, Row]
    changes_before: int


@dataclass
class Model:
    """The registry's changes in their order, and its versions by name."""

    changes: list[Change] = field(default_factory=list)
    versions: dict[str, Published] = field(default_factory=dict)
    live: str | None = None

    def paused(self) -> set[int]:
        """Ads on which the last pause or resume was a pause."""
        last = {item: kind for kind, item, _ in self.changes if kind in ("pause", "resume")}
        return {item for item, kind in last.items() if kind == "pause"}

    def catalogue(self, version: str) -> dict[int, Row]:
        """The ads of a version with all later changes, paused ones included.

        What an upsert does not say stays as it was, its place in the order of values too.
        """
        published = self.versions[version]
        logs = log_values(published.tables)
        least, usual = min(logs.values()), sum(logs.values()) / len(logs)
        rows = {item: {**row, "log_value": logs[item]} for item, row in published.tables.items()}
        gone: set[int] = set()
        for kind, item, said in self.changes[published.changes_before :]:
            if kind == "remove":
                gone.add(item)
            if kind == "upsert":
                before = rows.get(item, {"frequency": 0, "log_value": usual})
                news = "price" in said and (item not in rows or said["price"] != before.get("price"))
                valued = {"log_value": log_value(said, least)} if news else {}
                rows[item] = {**before, **said, **valued}
                gone.discard(item)
        return {item: row for item, row in rows.items() if item not in gone}

    def eligible(self, version: str) -> dict[int, Row]:
        """The ads that a version may show."""
        paused = self.paused()
        return {item: row for item, row in self.catalogue(version).items() if item not in paused}


@dataclass(frozen=True)
class Towers:
    """The towers as tables and formulas: an item's vector, a user's vector, both by hand."""

    by_id: dict[int, np.ndarray]
    unknown_id: np.ndarray
    by_category: dict[str, np.ndarray]
    no_category: np.ndarray
    unknown_category: np.ndarray
    price: np.ndarray
    sales: np.ndarray
    no_country: np.ndarray

    def item(self, item: int, row: Row) -> np.ndarray:
        """``[dim]``: the sum of what the ad's id, category, price and sales add."""
        category = row.get("category")
        unknown = self.no_category if category is None else self.unknown_category
        vector = self.by_id.get(item, self.unknown_id) + self.by_category.get(category, unknown)
        price = row.get("price")
        scaled = [0.0, 0.0] if price is None else [(math.log1p(price) - 2.0) / 0.5, 1.0]
        return vector + np.array(scaled) @ self.price + math.log1p(row.get("sales_7d") or 0) * self.sales

    def user(self, history: list[np.ndarray]) -> np.ndarray:
        """``[dim]``: the mean of the history; the record says nothing else."""
        return np.sum(history, axis=0) / (len(history) + 1e-6) + self.no_country


def log_values(tables: dict[int, Row]) -> dict[int, float]:
    """By ad: the logarithm of its price, of the least price where it has none above 0. A compaction kept its own."""
    least = math.log(min(row["price"] for row in tables.values() if row.get("price")))
    return {item: row["log_value"] if "log_value" in row else log_value(row, least) for item, row in tables.items()}


def log_value(row: Row, least: float) -> float:
    """The logarithm of a row's price; ``least`` where it has none above 0."""
    price = row.get("price")
    return math.log(price) if price is not None and price > 0 else least
