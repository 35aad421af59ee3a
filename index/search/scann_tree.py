"""ScaNN behind the searcher protocol, without its pitfalls.

Writes and reads a directory of ScaNN's own assets with relative paths (``scann_assets.pbtxt``, ``*.npy``, ``*.pb``),
and a projection if the tree was built with one. Writes no ids and no pickle. Vectors are checked before ScaNN sees
them: one NaN aborts the process.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.search.exact import best_by_utility, scores_of
from index.search.projection import Projection
from index.search.scann_binding import builder, compiled
from index.search.scann_loading import CONFIG_FILE, Tree, config_of
from index.search.scann_loading import load as load_assets
from index.search.searcher import (
    PAD_ROW,
    PAD_SCORE,
    Effort,
    Neighbors,
    Vectors,
    best_first,
    best_first_batch,
    check_k,
    check_queries,
    check_query,
    check_vectors,
)
from index.search.utility import Utility
from index.settings import TreeSettings
from pipelines.contracts.arrays import Int32
from pipelines.contracts.errors import ArtifactError, ConfigError

SETTINGS_FILE = "settings.json"
_TOKENS_FILE = "datapoint_to_token.npy"
# Our names of how vectors are stored, and those of ScaNN's builder.
_REORDER_NAMES = {"float32": "FLOAT32", "bf16": "BFLOAT16", "int8": "INT8"}
# The 16 values of a 4-bit code need at least as many vectors to be trained.
LEAST_ITEMS = 16
# With int8, one neighbor more is fetched for every three: 64 numbers rounded to 1/127 of their span err by about as
# much as the scores of three neighbors differ.
_INT8_SURPLUS = 3
# Batches of this size are handed to ScaNN's threads.
_PARALLEL_BATCH = 64


class ScannSearcher:
    """Approximate search with a tree, 4-bit product codes and reordering.

    Scores are exact dot products: where reordering reads bf16, int8 or projected vectors, the rows found are scored
    again with the float32 vectors given to ``build`` or ``load``.
    """

    def __init__(
        self,
        tree: Tree,
        settings: TreeSettings,
        vectors: Vectors,
        leaf_of_row: Int32 | None = None,
        projection: Projection | None = None,
    ):
        self._tree = tree
        self._projection = projection
        self._searcher = tree.searcher
        self._settings = settings
        self._vectors = vectors
        self._leaf_of_row = leaf_of_row
        self._rescores = settings.reorder_type != "float32" or projection is not None
        self._effort = Effort(settings.leaves_to_search, settings.reorder)

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        settings: TreeSettings,
        threads: int | None = None,
        *,
        projection: Projection | None = None,
    ) -> ScannSearcher:
        """Trains the tree and encodes the vectors.

        Args:
            vectors: ``[items, dim] float32``, finite.
            settings: what to build.
            threads: None is all cores.
            projection: of ``settings.projection`` dimensions, if that is set.

        Raises:
            ArtifactError: the vectors hold NaN or infinity, or have no rows.
            ConfigError: more leaves than items, fewer than 16 items, or ScaNN is not installed.
        """
        checked = check_vectors(vectors, "vectors")
        if len(checked) < LEAST_ITEMS:
            raise ConfigError(f"a tree needs at least {LEAST_ITEMS} items, got {len(checked)}. Use exact search.")
        if settings.leaves > len(checked):
            raise ConfigError(
                f"tree.leaves: expected at most the {len(checked)} items, got {settings.leaves}. Ask for fewer leaves."
            )
        assert (settings.projection is None) == (projection is None)
        seen = checked if projection is None else projection.of_items(checked)
        searcher = compiled().ScannNumpy(seen, config_text(seen, settings), threads or os.cpu_count() or 1)
        return cls(Tree(searcher), settings, checked, projection=projection)

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return int(self._vectors.shape[0])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    @property
    def settings(self) -> TreeSettings:
        """What the tree was built with."""
        return self._settings

    @property
    def projection(self) -> Projection | None:
        """What the tree sees of the vectors; None: all."""
        return self._projection

    @property
    def vectors(self) -> Vectors:
        """``[items, dim] float32``, in row order."""
        return self._vectors

    @property
    def effort(self) -> Effort:
        """The effort of a search that is given none."""
        return self._effort

    @property
    def full_effort(self) -> Effort:
        """All leaves, all items scored again: finds what exact search finds."""
        return Effort(self._settings.leaves, self.num_items)

    @property
    def leaf_of_row(self) -> Int32 | None:
        """``[items] int32``: the leaf of each row; with SOAR, which assigns a row to two, the first.

        None for a searcher that was built and not loaded: the leaves are read from the saved assets.
        """
        return self._leaf_of_row

    @property
    def leaves_searched(self) -> int:
        """Leaves that the default effort searches."""
        return self._effort.leaves

    @property
    def indexes_value(self) -> bool:
        """False: the tree knows the vectors alone."""
        return False

    def with_effort(self, effort: Effort) -> ScannSearcher:
        """The same tree with another default effort; nothing is built or copied."""
        update = {"leaves_to_search": effort.leaves, "reorder": effort.reorder}
        if self._projection is not None:
            update["rescore"] = self._rescored_by(effort)
        settings = self._settings.model_copy(update=update)
        return ScannSearcher(self._tree, settings, self._vectors, self._leaf_of_row, self._projection)

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows. See ``Searcher.search``.

        Without an effort, ``min(k, num_items)`` rows are always returned: where the tuned effort reaches fewer, every
        leaf is searched.
        """
        check_k(k)
        vector = check_query(query, self.dim)
        width = min(k, self.num_items)
        found = self._search(vector, width, effort or self._effort_for(width))
        if effort is None and found.rows.shape[0] < width:
            found = self._search(vector, width, self.full_effort)
        return found

    def _search(self, query: Vectors, k: int, effort: Effort) -> Neighbors:
        # One more than k shows whether a tie crosses the end; then more are fetched, so that the lower rows are kept.
        fetch = min(k + self._surplus(k, effort), self.num_items)
        seen = self._seen(query)
        while True:
            reorder = effort.reorder if effort.reorder > fetch else fetch
            found, scores = self._searcher.search(seen, fetch, reorder, min(effort.leaves, self._settings.leaves))
            neighbors, tied = self._finish(found, scores, query, k)
            if not tied or fetch == self.num_items:
                return neighbors
            fetch = min(2 * fetch, self.num_items)

    def _seen(self, query: Vectors) -> Vectors:
        """What the tree sees of a query."""
        if self._projection is None:
            return query
        seen: Vectors = query @ self._projection.queries
        return seen

    def _surplus(self, k: int, effort: Effort) -> int:
        """Neighbors fetched beyond k: int8 and projected scores swap places near the cut, and exact scores correct the
        order."""
        if self._projection is not None:
            return max(self._rescored_by(effort) - k, 1)
        return 1 + k // _INT8_SURPLUS if self._settings.reorder_type == "int8" else 1

    def _rescored_by(self, effort: Effort) -> int:
        """How many of the candidates are scored again with the full vectors; of all items, all."""
        if effort.rescore is not None:
            return min(effort.rescore, effort.reorder)
        tuned = self._settings.rescore
        if tuned is None or effort.reorder >= self.num_items:
            return min(effort.reorder, self.num_items)
        return -(-effort.reorder * tuned // self._settings.reorder)

    def _finish(
        self, found: npt.NDArray[np.uint32], scores: npt.NDArray[np.float32], query: Vectors, k: int
    ) -> tuple[Neighbors, bool]:
        """The k best of those found, and whether the k-th ties with the last that was found: there may be more such."""
        rows = found.view(np.int32)
        exact = scores_of(self._vectors, rows, query) if self._rescores else scores
        neighbors = best_first(rows, exact)
        if len(rows) <= k:
            return neighbors, False
        # Only several rows that the tree cannot tell apart say that there may be more of them.
        alike = scores[-1] == scores[-2]
        tied = bool(alike and (exact[scores == scores[-1]] == neighbors.scores[k - 1]).any())
        return Neighbors(neighbors.rows[:k], neighbors.scores[:k]), tied

    def search_utility(
        self,
        query: Vectors,
        k: int,
        utility: Utility,
        effort: Effort | None = None,  # noqa: ARG002
    ) -> Neighbors:
        """Returns the best rows by utility, every row scored. See ``Searcher.search_utility``."""
        return best_by_utility(self._vectors, query, k, utility)

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows of each query. See ``Searcher.search_batch``."""
        check_k(k)
        checked = check_queries(queries, self.dim)
        width = min(k, self.num_items)
        if len(checked) == 0:
            return Neighbors(np.zeros((0, width), np.int32), np.zeros((0, width), np.float32))
        chosen = effort or self._effort_for(width)
        fetch = min(width + self._surplus(width, chosen), self.num_items)
        # One by one: a product of matrices rounds in another order than that of a vector.
        seen = checked if self._projection is None else np.stack([self._seen(query) for query in checked])
        found, scores = self._searcher.search_batched(
            seen,
            fetch,
            max(chosen.reorder, fetch),
            min(chosen.leaves, self._settings.leaves),
            True,
            _PARALLEL_BATCH,
        )
        # A short line is padded with index 0 and distance NaN.
        missing = np.isnan(scores)
        rows = np.where(missing, PAD_ROW, found.astype(np.int32)).astype(np.int32)
        scores = np.where(missing, PAD_SCORE, scores).astype(np.float32)
        if self._rescores:
            scores = self._rescored(checked, rows)
        neighbors = best_first_batch(rows, scores)
        rows, scores = neighbors.rows[:, :width].copy(), neighbors.scores[:, :width].copy()
        for line in self._to_repeat(neighbors, width, effort):
            again = self.search(checked[line], width, effort)
            n = again.rows.shape[0]
            rows[line, :n], scores[line, :n] = again.rows, again.scores
        return Neighbors(rows, scores)

    def _to_repeat(self, neighbors: Neighbors, width: int, effort: Effort | None) -> npt.NDArray[np.intp]:
        """Lines with a tie across the end, and short lines where every row must be returned."""
        again = np.zeros(len(neighbors.rows), bool)
        if neighbors.rows.shape[1] > width:
            tied = neighbors.scores[:, width] == neighbors.scores[:, width - 1]
            again |= tied & (neighbors.rows[:, width] >= 0)
        if effort is None:
            again |= neighbors.rows[:, width - 1] < 0
        return np.flatnonzero(again)

    def _rescored(self, queries: Vectors, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        scores = np.empty(rows.shape, np.float32)
        for line, found in enumerate(rows):
            scores[line] = np.where(found < 0, PAD_SCORE, scores_of(self._vectors, found, queries[line]))
        return scores

    def _effort_for(self, k: int) -> Effort:
        """The tuned effort for 100 neighbors, its reordering depth scaled up for more."""
        if k <= 100:
            return self._effort
        return Effort(self._settings.leaves_to_search, max(self._settings.reorder, k * self._settings.reorder // 100))

    def save(self, directory: Path) -> None:
        """Writes ScaNN's assets and the settings below ``directory``, which must exist. Where reordering is
        not float32, the vectors are not written a second time: ``load`` is given them."""
        self._searcher.serialize(str(directory), True)
        if self._projection is not None:
            self._projection.save(directory)
        (directory / CONFIG_FILE).write_text(config_of(self._searcher))
        self.save_settings(directory)

    def save_settings(self, directory: Path) -> None:
        """Writes the settings alone, next to assets that are there already: another default effort."""
        (directory / SETTINGS_FILE).write_text(self._settings.model_dump_json(indent=2))

    @classmethod
    def load(cls, directory: Path, vectors: Vectors) -> ScannSearcher:
        """Reads what ``save`` wrote.

        Args:
            directory: where ``save`` wrote.
            vectors: ``[items, dim] float32``, those the tree was built on.

        Raises:
            ArtifactError: a file is missing or ScaNN cannot read it.
        """
        try:
            settings = TreeSettings.model_validate_json((directory / SETTINGS_FILE).read_bytes())
            tokens = np.load(directory / _TOKENS_FILE, allow_pickle=False)
            searcher = load_assets(directory)
            projection = None if settings.projection is None else Projection.load(directory)
        except (OSError, ValueError, RuntimeError) as err:
            raise ArtifactError(f"{directory}: ScaNN cannot read its assets ({err}). Build the bundle again.") from err
        if searcher.size() != len(vectors):
            raise ArtifactError(
                f"{directory}: expected {len(vectors)} items, found {searcher.size()}. Build the bundle again."
            )
        # With SOAR the two leaves of a row follow one another.
        first = tokens if len(tokens) == len(vectors) else tokens[::2]
        return cls(Tree(searcher), settings, vectors, first.astype(np.int32), projection)


def config_text(vectors: Vectors, settings: TreeSettings) -> str:
    """ScaNN's configuration of a tree, as text."""
    module = builder()
    reorder_type = getattr(module.ReorderType, _REORDER_NAMES[settings.reorder_type])
    threshold = float("nan") if settings.anisotropic_threshold is None else settings.anisotropic_threshold
    # Every call has its own number of neighbors; the configuration must name one, here 100.
    text = (
        module.ScannBuilder(vectors, 100, "dot_product")
        .tree(
            settings.leaves,
            settings.leaves_to_search,
            training_sample_size=settings.training_sample,
            soar_lambda=settings.soar_lambda,
        )
        .score_ah(
            settings.dims_per_block,
            anisotropic_quantization_threshold=threshold,
            training_sample_size=settings.training_sample,
        )
        .reorder(settings.reorder, quantize=reorder_type)
        .create_config()
    )
    return str(text)
