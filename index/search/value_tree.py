"""The value dimension: one tree that ranks by score + weight · log value, for any weight given with the call.

Writes and reads ``value/`` in a bundle: ``value.json`` (attribute, scale, what was measured), ``log_values.npy``
``[items] float32`` and ``vectors.npy`` ``[items, dim + 1] float32``, the vectors the tree was built on.

An item's vector gets one more number, ``scale · (log value - center)``; a query's gets ``weight / scale``. Their dot
product is then ``score + weight · (log value - center)``, which ranks as the utility does. The scale changes nothing of
the exact ranking, but much of how well the tree finds it: a large one makes leaves by value, a small one makes the
query long in a direction that the codes hardly see. It is chosen by measurement when the bundle is built.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from index.search.exact import VECTORS_FILE, load_vectors
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort, Neighbors, Scores, Searcher, Vectors, check_queries, check_query
from index.settings import TreeSettings
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError
from pipelines.contracts.schema import Section
from pipelines.contracts.top_k import top_k

VALUE_DIR = "value"
_SPEC_FILE = "value.json"
_LOG_VALUES_FILE = "log_values.npy"
# Weights a scale is measured at, and the scales that are tried.
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5)
SCALES = (0.1, 0.2, 0.3, 0.5)
# What recall at weight 0 may lose against the same tree without the dimension.
PLAIN_LOSS = 0.005
_K = 100
# Users a scale is measured with: a standard error of the mean recall of about .002.
_MEASURED_QUERIES = 100
# How much harder a search with a weight looks than one without.
_EFFORT_FACTOR = 2
# From this ratio of weight to scale on, the best by utility are few dear items anywhere in the space, which a tree by
# nearness does not find: the dearest are scored besides. 8 MB of their vectors, a third of a millisecond.
_STEEP = 1.0
_DEAREST_NUMBERS = 1 << 21


class ValueSpec(Section):
    """``value.json``: which attribute, how it was scaled, and the recall against exact utility, by weight."""

    attribute: str
    scale: float
    center: float
    weights: tuple[float, ...] = ()
    recall_at_100: tuple[float, ...] = ()


def log_values_of(column: pa.ChunkedArray | pa.Array, attribute: str) -> Scores:
    """``[items] float32`` natural logarithms; what is missing or not above 0 counts as the smallest value above 0.

    Raises:
        ConfigError: the column holds no numbers, or none above 0.
    """
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        raise ConfigError(f"index.value: expected a column of numbers, {attribute!r} is {column.type}. Name another.")
    values = np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0), np.float64)
    usable = np.isfinite(values) & (values > 0)
    if not usable.any():
        raise ConfigError(f"index.value: no item has a {attribute!r} above 0. Name another column.")
    return np.log(np.where(usable, values, values[usable].min())).astype(np.float32)


def augmented(vectors: Vectors, log_values: Scores, scale: float, center: float) -> Vectors:
    """``[items, dim + 1] float32``: the vectors with the value's dimension."""
    return np.concatenate([vectors, (np.float32(scale) * (log_values - np.float32(center)))[:, None]], axis=1)


@dataclass(frozen=True)
class ValueSearcher:
    """A tree over vectors with a value dimension, seen as a searcher over the vectors without it.

    inner: searches ``dim + 1`` dimensions. log_values: ``[items] float32``.
    """

    inner: Searcher
    spec: ValueSpec
    log_values: Scores

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return self.inner.num_items

    @property
    def dim(self) -> int:
        """Length of a vector, without the value's dimension."""
        return self.inner.dim - 1

    @property
    def full_effort(self) -> Effort | None:
        """The effort that looks at every row."""
        return self.inner.full_effort

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by score alone. See ``Searcher.search``."""
        return self.inner.search(self._padded(query, 0.0), k, effort)

    def search_utility(self, query: Vectors, k: int, weight: float, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by ``score + weight · log value``, with that utility as their scores.

        Raises:
            SchemaError: as ``Searcher.search``.
        """
        harder = self._harder(k) if effort is None else effort
        found = self.inner.search(self._padded(query, weight), k, harder)
        found = Neighbors(found.rows, found.scores + np.float32(weight * self.spec.center))
        if weight < _STEEP * self.spec.scale:
            return found
        dearest = self._dearest
        scores = dearest.vectors @ query + np.float32(weight) * self.log_values[dearest.rows]
        return _merged(found, Neighbors.best(scores, k, dearest.rows), k)

    @functools.cached_property
    def _dearest(self) -> _Dearest:
        assert isinstance(self.inner, ScannSearcher)
        most = min(self.num_items, _DEAREST_NUMBERS // self.dim)
        rows = np.sort(np.argsort(-self.log_values, kind="stable")[:most]).astype(np.int32)
        return _Dearest(rows, np.ascontiguousarray(self.inner.vectors[rows][:, :-1]))

    def warm(self) -> None:
        """Lays out what a large weight needs, so that no call waits for it."""
        self._dearest  # noqa: B018

    def _harder(self, k: int) -> Effort | None:
        if not isinstance(self.inner, ScannSearcher):
            return None
        tuned = self.inner.effort
        reorder = tuned.reorder * max(k, _K) // _K
        return Effort(_EFFORT_FACTOR * tuned.leaves, _EFFORT_FACTOR * reorder)

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by score alone. See ``Searcher.search_batch``."""
        checked = check_queries(queries, self.dim)
        return self.inner.search_batch(np.pad(checked, ((0, 0), (0, 1))), k, effort)

    def _padded(self, query: Vectors, weight: float) -> Vectors:
        padded = np.empty(self.inner.dim, np.float32)
        padded[:-1] = check_query(query, self.dim)
        padded[-1] = weight / self.spec.scale
        return padded

    def save(self, directory: Path) -> None:
        """Writes the tree below ``directory``; the value's own files are written by ``save_value``."""
        self.inner.save(directory)


@dataclass(frozen=True)
class _Dearest:
    """The items of the largest values: rows rising, and their vectors ``[n, dim] float32``."""

    rows: npt.NDArray[np.int32]
    vectors: Vectors


def _merged(first: Neighbors, second: Neighbors, k: int) -> Neighbors:
    """The k best of both, a row counted once."""
    rows = np.concatenate([first.rows, second.rows])
    scores = np.concatenate([first.scores, second.scores])
    rows, places = np.unique(rows, return_index=True)
    return Neighbors.best(scores[places], k, rows)


def save_value(bundle: Path, spec: ValueSpec, log_values: Scores, vectors: Vectors) -> None:
    """Writes ``value/`` below a bundle being built. ``vectors [items, dim + 1]``: what the tree was built on."""
    place = bundle / VALUE_DIR
    place.mkdir()
    (place / _SPEC_FILE).write_text(spec.model_dump_json(indent=2))
    np.save(place / _LOG_VALUES_FILE, log_values)
    np.save(place / VECTORS_FILE, vectors)


@dataclass(frozen=True)
class Value:
    """What a bundle says of the items' value. ``vectors``: those with the value's dimension."""

    spec: ValueSpec
    log_values: Scores
    vectors: Vectors


def load_value(bundle: Path) -> Value | None:
    """Reads ``value/`` of a bundle; None where it was built without.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    place = bundle / VALUE_DIR
    if not place.is_dir():
        return None
    try:
        spec = ValueSpec.model_validate_json((place / _SPEC_FILE).read_bytes())
        log_values: Scores = np.load(place / _LOG_VALUES_FILE, allow_pickle=False)
    except (OSError, ValueError, ValidationError) as err:
        raise ArtifactError(f"{place}: cannot be read ({err}). Build the bundle again.") from err
    return Value(spec, log_values, load_vectors(place / VECTORS_FILE))


def add_value(
    bundle: Path, searcher: Searcher, vectors: Vectors, column: pa.ChunkedArray, attribute: str, queries: Vectors
) -> Searcher:
    """Gives a bundle being built its value dimension, and returns the searcher to save.

    With exact search nothing is built: the logarithms alone are written, and vectors of scale 1.

    Args:
        bundle: the directory being written.
        searcher: the one that was tuned.
        vectors: ``[items, dim] float32``.
        column: the attribute's values, in row order.
        attribute: its name.
        queries: ``[queries, dim] float32`` held-out users' vectors; the first of them are measured with.

    Raises:
        ConfigError: the column holds no numbers above 0, or the searcher is sharded.
    """
    log_values = log_values_of(column, attribute)
    if isinstance(searcher, ScannSearcher):
        scaled = choose_scale(vectors, log_values, attribute, searcher.settings, queries[:_MEASURED_QUERIES])
        save_value(bundle, scaled.searcher.spec, log_values, scaled.vectors)
        return cast(Searcher, scaled.searcher)
    if searcher.full_effort is not None:
        raise ConfigError("index.value: a value dimension needs one shard. Set index.shards = 1, or leave value out.")
    center = float(log_values.mean())
    spec = ValueSpec(attribute=attribute, scale=1.0, center=center)
    save_value(bundle, spec, log_values, augmented(vectors, log_values, 1.0, center))
    return searcher


@dataclass(frozen=True)
class ScaledTree:
    """A tree built at one scale, and its recall by weight."""

    searcher: ValueSearcher
    vectors: Vectors
    recalls: npt.NDArray[np.float64]


def choose_scale(
    vectors: Vectors,
    log_values: Scores,
    attribute: str,
    tree: TreeSettings,
    queries: Vectors,
    *,
    scales: Sequence[float] = SCALES,
    threads: int | None = None,
) -> ScaledTree:
    """Builds a tree at each scale and returns the one with the best worst recall over ``WEIGHTS``.

    Among scales that lose at most ``PLAIN_LOSS`` at weight 0 against the plain tree; if all lose more, the one that
    loses least.

    Args:
        vectors: ``[items, dim] float32``.
        log_values: ``[items] float32``.
        attribute: the value's column, for the record.
        tree: what to build.
        queries: ``[queries, dim] float32`` held-out users' vectors.
        scales: what to try.
        threads: for building.
    """
    plain = ScannSearcher.build(vectors, tree, threads)
    plain_recall = float(np.mean([_recall(plain.search(query, _K), vectors @ query) for query in queries]))
    del plain
    center = float(log_values.mean())
    best: ScaledTree | None = None
    for scale in scales:
        candidate = _build(
            vectors, log_values, ValueSpec(attribute=attribute, scale=scale, center=center), tree, threads
        )
        measured = _measured(candidate, vectors, log_values, queries)
        if best is None or _rank(measured, plain_recall) > _rank(best, plain_recall):
            best = measured
    assert best is not None
    spec = best.searcher.spec.model_copy(update={"weights": WEIGHTS, "recall_at_100": tuple(best.recalls.tolist())})
    return ScaledTree(ValueSearcher(best.searcher.inner, spec, log_values), best.vectors, best.recalls)


def _build(
    vectors: Vectors, log_values: Scores, spec: ValueSpec, tree: TreeSettings, threads: int | None
) -> ScaledTree:
    longer = augmented(vectors, log_values, spec.scale, spec.center)
    inner = cast(Searcher, ScannSearcher.build(longer, tree, threads))
    return ScaledTree(ValueSearcher(inner, spec, log_values), longer, np.zeros(len(WEIGHTS)))


def _measured(tree: ScaledTree, vectors: Vectors, log_values: Scores, queries: Vectors) -> ScaledTree:
    recalls = np.zeros((len(queries), len(WEIGHTS)))
    for place, query in enumerate(queries):
        scores = vectors @ query
        for column, weight in enumerate(WEIGHTS):
            found = tree.searcher.search(query, _K) if weight == 0 else tree.searcher.search_utility(query, _K, weight)
            recalls[place, column] = _recall(found, scores + np.float32(weight) * log_values)
    return ScaledTree(tree.searcher, tree.vectors, recalls.mean(axis=0))


def _recall(found: Neighbors, scores: Scores) -> float:
    truth = top_k(scores, _K)
    return len(np.intersect1d(found.rows, truth)) / len(truth)


def _rank(tree: ScaledTree, plain_recall: float) -> tuple[bool, float]:
    keeps = bool(tree.recalls[0] >= plain_recall - PLAIN_LOSS)
    return keeps, float(tree.recalls.min() if keeps else tree.recalls[0])


def load_value_searcher(value: Value, directory: Path, shards: int) -> Searcher:
    """The tree of a bundle with a value. ``directory``: the tree's own.

    Raises:
        ArtifactError: ScaNN cannot read its assets.
        SchemaError: the bundle is sharded, which a value dimension does not support.
    """
    if shards != 1:
        raise SchemaError("a bundle with a value dimension has one shard. Build it with shards = 1.")
    inner = cast(Searcher, ScannSearcher.load(directory, value.vectors))
    return ValueSearcher(inner, value.spec, value.log_values)
