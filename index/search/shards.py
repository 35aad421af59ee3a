"""Shards: parts of the catalogue that are searched one by one and whose results are merged.

Reads and writes one directory per shard; ``index.building.sharding_job`` builds them. A shard holds a contiguous range
of rows and can be built on its own, in another process or on another machine. At full effort the answer is that of one
index over all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from index.search.scann_tree import ScannSearcher
from index.search.searcher import (
    PAD_ROW,
    PAD_SCORE,
    Effort,
    Neighbors,
    Vectors,
    best_first,
    best_first_batch,
    check_k,
)
from index.search.utility import Utility
from index.settings import TreeSettings
from pipelines.contracts.arrays import Int32


def shard_bounds(items: int, shards: int) -> list[int]:
    """Where each shard begins, and the end: ``shards + 1`` ascending rows; sizes differ by at most one."""
    return [items * shard // shards for shard in range(shards + 1)]


class ShardedSearcher:
    """Several trees over consecutive rows, used as one. Settings and efforts apply to each shard."""

    def __init__(self, parts: Sequence[ScannSearcher]) -> None:
        """Takes the shards in row order: at least one, all with the same settings."""
        self._parts = tuple(parts)
        sizes = [part.num_items for part in self._parts]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
        self._items = sum(sizes)

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return self._items

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._parts[0].dim

    @property
    def parts(self) -> tuple[ScannSearcher, ...]:
        """The shards, in row order."""
        return self._parts

    @property
    def settings(self) -> TreeSettings:
        """What each shard was built with."""
        return self._parts[0].settings

    @property
    def effort(self) -> Effort:
        """The default effort of each shard."""
        return self._parts[0].effort

    @property
    def leaf_of_row(self) -> Int32 | None:
        """``[items] int32``: the leaf of each row, counted on from shard to shard."""
        counted: list[Int32] = []
        leaves = 0
        for part in self._parts:
            if part.leaf_of_row is None:
                return None
            counted.append(part.leaf_of_row + np.int32(leaves))
            leaves += int(part.leaf_of_row.max()) + 1
        return np.concatenate(counted)

    @property
    def leaves_searched(self) -> int:
        """Leaves that the default effort searches, of all shards together."""
        return sum(part.leaves_searched for part in self._parts)

    @property
    def indexes_value(self) -> bool:
        """False: the trees know the vectors alone."""
        return False

    @property
    def full_effort(self) -> Effort:
        """The effort that looks at every row of every shard."""
        efforts = [part.full_effort for part in self._parts]
        return Effort(max(effort.leaves for effort in efforts), max(effort.reorder for effort in efforts))

    def with_effort(self, effort: Effort) -> ShardedSearcher:
        """The same shards, each with another default effort; nothing is built or copied."""
        return ShardedSearcher([part.with_effort(effort) for part in self._parts])

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows of all shards. See ``Searcher.search``."""
        check_k(k)
        return self._merged([part.search(query, k, effort) for part in self._parts], k)

    def search_utility(self, query: Vectors, k: int, utility: Utility, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by utility, every row scored. See ``Searcher.search_utility``."""
        check_k(k)
        found = [
            part.search_utility(query, k, utility.between(start, start + part.num_items), effort)
            for part, start in zip(self._parts, self._starts.tolist(), strict=True)
        ]
        return self._merged(found, k)

    def _merged(self, found: list[Neighbors], k: int) -> Neighbors:
        rows = np.concatenate([near.rows + start for near, start in zip(found, self._starts, strict=True)])
        merged = best_first(rows, np.concatenate([near.scores for near in found]))
        return Neighbors(merged.rows[:k], merged.scores[:k])

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows of each query. See ``Searcher.search_batch``."""
        check_k(k)
        found = [part.search_batch(queries, k, effort) for part in self._parts]
        rows = [
            np.where(near.rows < 0, PAD_ROW, near.rows + start).astype(np.int32)
            for near, start in zip(found, self._starts, strict=True)
        ]
        scores = [np.where(near.rows < 0, PAD_SCORE, near.scores).astype(np.float32) for near in found]
        merged = best_first_batch(np.concatenate(rows, axis=1), np.concatenate(scores, axis=1))
        return Neighbors(merged.rows[:, :k], merged.scores[:, :k])

    def save(self, directory: Path) -> None:
        """Writes each shard below ``directory``. For a shard that ``index.building.sharding_job`` has already written
        there, only the default effort is written."""
        for number, part in enumerate(self._parts):
            place = directory / shard_name(number)
            if place.is_dir():
                part.save_settings(place)
            else:
                place.mkdir()
                part.save(place)

    @classmethod
    def load(cls, directory: Path, vectors: Vectors, shards: int) -> ShardedSearcher:
        """Reads the shards below ``directory``.

        Args:
            directory: with one directory per shard.
            vectors: ``[items, dim] float32``, those the shards were built on.
            shards: number of shards.

        Raises:
            ArtifactError: a shard is missing or ScaNN cannot read it.
        """
        bounds = itertools.pairwise(shard_bounds(len(vectors), shards))
        return cls(
            [
                ScannSearcher.load(directory / shard_name(number), vectors[start:end])
                for number, (start, end) in enumerate(bounds)
            ]
        )


def shard_name(number: int) -> str:
    """The directory of a shard."""
    return f"shard-{number:05d}"
