"""The value dimension: one tree that ranks by score + weight · log value, for any weight given in the call.

Writes and reads ``value/`` in a bundle: ``value.json`` (attribute, scale, what was measured), ``log_values.npy``
``[items] float32`` and ``vectors.npy`` ``[items, dim + 1] float32``, the vectors the tree was built on.

An item's vector gets one more number, ``scale · (log value - center)``; a query's gets ``weight / scale``. Their dot
product is then ``score + weight · (log value - center)``, which ranks as the utility does. The scale does not change
the exact ranking, but it matters for how well the tree finds it: a large scale partitions the leaves by value, a small
one makes the query long in a direction that the codes barely represent. ``index.building.value_scale`` chooses it by
measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from index.search.exact import VECTORS_FILE, load_vectors
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort, Neighbors, Scores, Vectors, check_queries, check_query
from index.search.utility import Utility
from pipelines.contracts.arrays import Int32
from pipelines.contracts.configuration import Section
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError
from pipelines.contracts.top_k import top_k

VALUE_DIR = "value"
_SPEC_FILE = "value.json"
_LOG_VALUES_FILE = "log_values.npy"
# Neighbors that a tree's own effort is tuned for.
_K = 100
# Effort of a search with a weight, as a multiple of one without.
_EFFORT_FACTOR = 2
# From this ratio of weight to scale on, the best by utility are a few valuable items anywhere in the space, which a
# tree by nearness does not find: the most valuable are scored too. 8 MB of their vectors, a third of a millisecond.
_STEEP = 1.0
_MOST_VALUABLE_NUMBERS = 1 << 21


class ValueSpec(Section):
    """``value.json``: the attribute, its scale, and the recall against exact search by utility, by weight."""

    attribute: str
    scale: float
    center: float
    weights: tuple[float, ...] = ()
    recall_at_100: tuple[float, ...] = ()


def log_values_of(column: pa.ChunkedArray | pa.Array, attribute: str) -> Scores:
    """``[items] float32`` natural logarithms; missing values and values up to 0 count as the smallest one above 0.

    Raises:
        ConfigError: the column holds no numbers, or none above 0.
    """
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        raise ConfigError(f"index.value: expected a column of numbers, {attribute!r} is {column.type}. Name another.")
    values = np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), 0.0), np.float64)
    usable = np.isfinite(values) & (values > 0)
    if not usable.any():
        raise ConfigError(f"index.value: no item has a {attribute!r} above 0. Name another column.")
    return np.log(np.where(usable, values, values[usable].min())).astype(np.float32)


def said_log_values(values: pa.Array, least: float) -> Scores:
    """``[n] float32`` natural logarithms of single values; missing ones and those up to 0 count as ``least``, the
    logarithm of the catalogue's smallest."""
    numbers = np.asarray(pc.fill_null(values.cast(pa.float64(), safe=False), 0.0), np.float64)
    usable = np.isfinite(numbers) & (numbers > 0)
    return np.where(usable, np.log(np.where(usable, numbers, 1.0)), least).astype(np.float32)


def augmented(vectors: Vectors, log_values: Scores, scale: float, center: float) -> Vectors:
    """``[items, dim + 1] float32``: the vectors with the value's dimension."""
    return np.concatenate([vectors, (np.float32(scale) * (log_values - np.float32(center)))[:, None]], axis=1)


class ValueSearcher:
    """A tree over vectors with a value dimension, seen as a searcher over the vectors without it."""

    def __init__(self, inner: ScannSearcher, spec: ValueSpec, log_values: Scores) -> None:
        """Takes the tree over ``dim + 1`` dimensions and ``log_values [items] float32``.

        The most valuable items are laid out here, so that no call waits for it.
        """
        self._inner = inner
        self._spec = spec
        most = min(inner.num_items, _MOST_VALUABLE_NUMBERS // (inner.dim - 1))
        self._valuable_rows = np.sort(top_k(log_values, most))
        self._valuable_vectors = np.ascontiguousarray(inner.vectors[self._valuable_rows][:, :-1])

    @property
    def spec(self) -> ValueSpec:
        """How the value was scaled."""
        return self._spec

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return self._inner.num_items

    @property
    def dim(self) -> int:
        """Length of a vector, without the value's dimension."""
        return self._inner.dim - 1

    @property
    def effort(self) -> Effort:
        """The tree's default effort."""
        return self._inner.effort

    @property
    def full_effort(self) -> Effort:
        """The effort that looks at every row."""
        return self._inner.full_effort

    @property
    def leaf_of_row(self) -> Int32 | None:
        """``[items] int32``: the leaf of each row; None where the tree was just built."""
        return self._inner.leaf_of_row

    @property
    def leaves_searched(self) -> int:
        """Leaves that the default effort searches."""
        return self._inner.leaves_searched

    @property
    def indexes_value(self) -> bool:
        """True: this is what the value dimension is for."""
        return True

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by score alone. See ``Searcher.search``."""
        return self._inner.search(self._padded(query, 0.0), k, effort)

    def search_utility(self, query: Vectors, k: int, utility: Utility, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by utility. See ``Searcher.search_utility``."""
        padded = self._padded(query, utility.weight)
        found = self._inner.search(padded, k, self._harder(k) if effort is None else effort)
        if effort is None and len(found.rows) < min(k, self.num_items):
            found = self._inner.search(padded, k, self.full_effort)
        found = Neighbors(found.rows, found.scores + np.float32(utility.weight * self._spec.center))
        if utility.weight < _STEEP * self._spec.scale:
            return found
        utilities = utility.of(self._valuable_vectors @ padded[:-1], self._valuable_rows)
        return _merged(found, Neighbors.best(utilities, k, self._valuable_rows), k)

    def _harder(self, k: int) -> Effort:
        tuned = self._inner.effort
        reorder = tuned.reorder * max(k, _K) // _K
        return Effort(_EFFORT_FACTOR * tuned.leaves, _EFFORT_FACTOR * reorder)

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by score alone. See ``Searcher.search_batch``."""
        checked = check_queries(queries, self.dim)
        return self._inner.search_batch(np.pad(checked, ((0, 0), (0, 1))), k, effort)

    def _padded(self, query: Vectors, weight: float) -> Vectors:
        padded = np.empty(self._inner.dim, np.float32)
        padded[:-1] = check_query(query, self.dim)
        padded[-1] = weight / self._spec.scale
        return padded

    def save(self, directory: Path) -> None:
        """Writes the tree below ``directory``; ``save_value`` writes the files of the value dimension."""
        self._inner.save(directory)


def _merged(first: Neighbors, second: Neighbors, k: int) -> Neighbors:
    """The k best of both, each row once."""
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
    """A bundle's value dimension. ``vectors``: with the dimension appended."""

    spec: ValueSpec
    log_values: Scores
    vectors: Vectors


def load_value(bundle: Path) -> Value | None:
    """Reads ``value/`` of a bundle; None if it was built without one.

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


def load_value_searcher(value: Value, directory: Path, shards: int) -> ValueSearcher:
    """The tree of a bundle with a value. ``directory``: the tree's own.

    Raises:
        ArtifactError: ScaNN cannot read its assets.
        SchemaError: the bundle is sharded, which a value dimension does not support.
    """
    if shards != 1:
        raise SchemaError("a bundle with a value dimension has one shard. Build it with shards = 1.")
    return ValueSearcher(ScannSearcher.load(directory, value.vectors), value.spec, value.log_values)
