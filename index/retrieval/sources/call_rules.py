"""The rules of a call, checked and looked up in the version that answers. They hold for every source of candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from index.retrieval.live.version import ServingVersion
from index.rules.crowding import Limit, expected_fetch, limits_of
from index.rules.diversity import POOL
from index.rules.eligible import Eligible
from index.search.searcher import Rows
from index.search.utility import Utility
from pipelines.contracts.errors import SchemaError

# Up to this many excluded rows are fetched in addition and dropped; more are removed from the eligible rows.
_FEW_EXCLUDED = 1000


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a call, as given."""

    where: str | None = None
    exclude: Sequence[Any] | AbstractSet[Any] = ()
    max_per: Mapping[str, int] | None = None
    value_weight: float = 0.0
    diversity: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadRules:
    """The rules, looked up in a version.

    eligible: None means every ad that may be shown. new: the eligible items without an event in train, if new items
    have a share of the places, else None. excluded: ``[n] int32`` ascending rows, eligible or not. utility: None ranks
    by score alone.
    """

    eligible: Eligible | None
    new: Eligible | None
    excluded: Rows
    limits: tuple[Limit, ...]
    utility: Utility | None
    diversity: float

    def fetch(self, live: ServingVersion, least: int) -> int:
        """How many rows to search for so that about ``least`` remain under the rules."""
        pool = least + (POOL if self.diversity > 0 else 0)
        if self.limits:
            shares = {limit.attribute: live.group_shares(limit.attribute) for limit in self.limits}
            pool = expected_fetch(pool, self.limits, shares)
        return pool + len(self.excluded)


def read_rules(live: ServingVersion, rules: Rules) -> ReadRules:
    """Checks the rules and looks them up in a version.

    Raises:
        SchemaError: a rule has the wrong type or range, or names something that the version does not have.
    """
    limits = limits_of(rules.max_per, live.attributes)
    weight = _number(rules.value_weight, "value_weight", 0.0, 1e6)
    if weight != 0.0 and live.planner.log_values is None:
        raise SchemaError(
            f"value_weight: version {live.version} was built without a value. Name an attribute with [index] value."
        )
    diversity = _number(rules.diversity, "diversity", 0.0, 1.0)
    eligible = None if rules.where is None else live.eligible(rules.where)
    new = live.new_items(rules.where) if live.settings.new_items_share > 0.0 else None
    excluded = excluded_rows(live, rules.exclude)
    if len(excluded) > _FEW_EXCLUDED:
        eligible, new = _without(live, eligible, excluded), None if new is None else _without(live, new, excluded)
        excluded = excluded[:0]
    return ReadRules(eligible, new, excluded, limits, live.planner.utility(weight), diversity)


def _number(value: object, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise SchemaError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r:.80}")
    if not least <= float(value) <= most:
        raise SchemaError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r:.80}")
    return float(value)


def excluded_rows(live: ServingVersion, exclude: object) -> Rows:
    """``[n] int32`` rows of the ids to exclude, ascending, each once; ids that the version does not have are left out.

    Raises:
        SchemaError: not a list of ids, or one can be no id of the catalogue's type.
    """
    if isinstance(exclude, str | bytes | Mapping) or not hasattr(exclude, "__len__"):
        raise SchemaError(f"exclude: expected a list of item ids, got {exclude!r:.80}")
    if isinstance(exclude, AbstractSet):
        exclude = list(exclude)
    elif not isinstance(exclude, Sequence | np.ndarray | pa.Array | pa.ChunkedArray):
        if not hasattr(exclude, "__array__"):
            raise SchemaError(f"exclude: expected a list of item ids, got {exclude!r:.80}")
        exclude = np.asarray(exclude)
    rows = np.sort(live.items.rows(exclude, "exclude"))
    return rows[np.diff(rows, prepend=np.int32(-1)) > 0]  # Unique and not -1. np.unique takes 70 us per 1,000.


def _without(live: ServingVersion, eligible: Eligible | None, excluded: Rows) -> Eligible:
    mask = np.ones(live.num_items, bool) if eligible is None else eligible.mask.copy()
    mask[excluded] = False
    return live.lay_out(mask, gather=False)
