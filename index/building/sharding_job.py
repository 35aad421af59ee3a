"""Builds the shards of a catalogue, each in a Beam worker, for ``index.shards`` above 1.

Reads ``vectors.npy``; writes one directory per shard, which ``index.search.shards`` searches. A Beam job: one element
is one shard; the worker maps the file, so that it holds the vectors of its own rows alone.
"""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from index.search.exact import load_vectors
from index.search.projection import Projection
from index.search.scann_tree import LEAST_ITEMS, ScannSearcher
from index.search.searcher import Vectors
from index.search.shards import ShardedSearcher, shard_bounds, shard_name
from index.settings import TreeSettings
from pipelines.contracts.errors import ConfigError


@dataclass(frozen=True)
class ShardRows:
    """Rows ``start`` to ``end`` of the catalogue."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class ShardsJob:
    """Where the shards' vectors are, where they go, and who builds them.

    vectors: ``vectors.npy``, ``[items, dim] float32``; workers elsewhere see it, and ``out``, at the same path.
    out: a folder that will be created.
    threads: of one build; None uses all cores. beam_args: options of Beam; none means the runner inside this process.
    """

    vectors: Path
    out: Path
    shards: int
    threads: int | None = None
    beam_args: Sequence[str] = ()

    def build(
        self, tree: TreeSettings, projection: Projection | None = None, vectors: Vectors | None = None
    ) -> ShardedSearcher:
        """Builds every shard with the settings of ``tree`` and returns them, loaded.

        Args:
            tree: of each shard.
            projection: of all shards, if the tree has one.
            vectors: what the file holds, where it is mapped already; a second map would count twice.

        Raises:
            ConfigError: a shard would have fewer than 16 items, or fewer items than the tree has leaves.
        """
        # Only a build with shards needs Beam.
        from pipelines.runner import beam, new_pipeline, pipeline_options

        vectors = load_vectors(self.vectors) if vectors is None else vectors
        check_shards(len(vectors), self.shards, tree)
        bounds = itertools.pairwise(shard_bounds(len(vectors), self.shards))
        self.out.mkdir()
        elements = [ShardRows(number, start, end) for number, (start, end) in enumerate(bounds)]
        with new_pipeline(pipeline_options(self.beam_args)) as pipeline:
            _ = (
                pipeline
                | "List shards" >> beam.Create(elements)
                | "Spread over workers" >> beam.Reshuffle()
                | "Build shards" >> beam.Map(build_shard, self.vectors, self.out, tree, self.threads, projection)
            )
        return ShardedSearcher.load(self.out, vectors, self.shards)


def build_shard(
    shard: ShardRows,
    vectors: Path,
    out: Path,
    tree: TreeSettings,
    threads: int | None,
    projection: Projection | None = None,
) -> None:
    """Builds the tree of one shard and writes it to ``out/shard-NNNNN/``, completely or not at all."""
    rows = load_vectors(vectors)[shard.start : shard.end]
    aside = out / f".{shard.number}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    ScannSearcher.build(rows, tree, threads, projection=projection).save(aside)
    target = out / shard_name(shard.number)
    try:
        aside.rename(target)
    except OSError:
        # Another attempt at the same shard was faster: keep what it wrote.
        if not target.is_dir():
            raise
        shutil.rmtree(aside)


def check_shards(items: int, shards: int, tree: TreeSettings | None = None) -> None:
    """Checks that shards are large enough for a tree.

    Raises:
        ConfigError: a shard would have fewer than 16 items, or fewer than the tree has leaves.
    """
    if items < shards * LEAST_ITEMS:
        raise ConfigError(
            f"index.shards: expected at most {items // LEAST_ITEMS} for {items} items, got {shards}. "
            "Ask for fewer shards."
        )
    if tree is not None and tree.leaves > items // shards:
        raise ConfigError(
            f"tree.leaves: expected at most the {items // shards} items of a shard, got {tree.leaves}. "
            "Ask for fewer leaves or fewer shards."
        )
