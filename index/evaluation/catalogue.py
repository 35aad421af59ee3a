"""What is known about the ads: category, advertiser, price, age, events; in the rows of the features' catalogue.

Reads the features' items table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData
from pipelines.contracts.arrays import Bools, Float64
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ConfigError

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Catalogue:
    """Columns of the items, None if the data set does not have them.

    category: ``[items]`` text. category_code: ``[items] int32`` place in ``categories``, the last one is "no
    category". advertiser: ``[items] int32`` place in ``advertisers``, the last one is "no advertiser". price:
    ``[items] float64``, NaN where missing. age_days: ``[items] float64`` at the moment of the request, NaN where
    missing. title: ``[items]`` text. learned: ``[items] bool`` the towers have learned from an event of it.
    """

    category: pa.Array | None
    category_code: Codes
    categories: tuple[str, ...]
    advertiser: Codes | None
    advertisers: tuple[str, ...]
    price: Float64 | None
    age_days: Float64 | None
    title: pa.Array | None
    learned: Bools

    @classmethod
    def of(cls, data: EvaluationData, settings: EvaluationSettings, learned_events: Float64 | None = None) -> Catalogue:
        """Reads the columns that the settings, or else the schema, name.

        Args:
            data: the features.
            settings: names columns.
            learned_events: see ``Subject.learned_events``; None is every event before the test part.

        Raises:
            ConfigError: a column that the settings name does not exist or has an unsuitable type.
        """
        schema, items = data.schema, data.items
        roles = schema.tables.items
        category = _column(items, settings.category or _first(data, "categorical"), "category")
        text = None if category is None else category.cast(pa.string())
        coded = _coded(text, len(data.item_ids))
        advertiser = None if roles is None else roles.advertiser_id
        owners = _coded(_column(items, advertiser, "advertiser"), len(items))
        return cls(
            category=text,
            category_code=coded.codes,
            categories=coded.values,
            advertiser=None if advertiser is None else owners.codes,
            advertisers=owners.values,
            price=_numbers(items, settings.price),
            age_days=_ages(data, settings.first_seen or _first(data, "time_since")),
            title=None if roles is None else _column(items, roles.title, "title"),
            learned=(data.item_events if learned_events is None else learned_events) > 0,
        )


@dataclass(frozen=True)
class _Coded:
    codes: Codes
    values: tuple[str, ...]


def _coded(column: pa.Array | None, items: int) -> _Coded:
    """Places of the values in their order; missing values get their own place at the end."""
    if column is None:
        return _Coded(np.zeros(items, np.int32), ("(missing)",))
    text = column.cast(pa.string())
    values = pc.unique(text.drop_null()).sort()
    codes = np.asarray(pc.fill_null(pc.index_in(text, value_set=values), len(values)), np.int32)
    return _Coded(codes, (*values.to_pylist(), "(missing)"))


def _first(data: EvaluationData, kind: str) -> str | None:
    """The column of the first item feature of a kind that the items table has."""
    features = [feature for feature in data.schema.side("item") if feature.kind == kind]
    names = [feature.source for feature in features if feature.source in data.items.column_names]
    return names[0] if names else None


def _column(items: pa.Table, name: str | None, setting: str) -> pa.Array | None:
    if name is None:
        return None
    if name not in items.column_names:
        raise ConfigError(
            f"evaluation.{setting}: expected a column of the items ({', '.join(items.column_names)}), got {name!r}. "
            "The features keep the columns that features, roles and index.attributes name."
        )
    column = items[name]
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _numbers(items: pa.Table, name: str | None) -> Float64 | None:
    column = _column(items, name, "price")
    if column is None:
        return None
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ConfigError(f"evaluation.price: expected a column of numbers, got {name!r} of type {column.type}.")
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _ages(data: EvaluationData, name: str | None) -> Float64 | None:
    column = _column(data.items, name, "first_seen")
    if column is None:
        return None
    if not pa.types.is_temporal(column.type):
        raise ConfigError(f"evaluation.first_seen: expected a column of times, got {name!r} of type {column.type}.")
    moments = data.users.request_times(data.schema)[data.held_out.users]
    now = float(np.median(moments))
    seen = column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64(), safe=False)
    first = np.asarray(seen.to_numpy(zero_copy_only=False), np.float64)
    return np.maximum((now - first) / US_PER_DAY, 0.0)
