"""The bundle: everything that answers a request, in one directory that is complete or refused.

Reads a directory that ``index.building.job`` wrote (docs/bundle-format.md). Needs neither TensorFlow nor Beam.
"""

from __future__ import annotations

import datetime
import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from index.inference.item_features import ItemFeatures
from index.inference.item_rows import read_rows, taken
from index.inference.item_types import ItemTypes
from index.inference.record_embedder import RecordEmbedder
from index.registry.searcher_spec import SearcherSpec
from index.search.exact import VECTORS_FILE, ExactSearcher, load_vectors
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Neighbors, Searcher, Vectors
from index.search.shards import ShardedSearcher
from index.search.value_tree import Value, load_value, load_value_searcher
from pipelines.contracts.arrays import Float64
from pipelines.contracts.conversion.column_type import MOMENT
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import MANIFEST_FILE, Artifact, Manifest, open_artifact
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.locks import Hold

KIND = "bundle"
# 2: item_features.arrow, and the facts as_of_us and delta_sequence. 3: a tree may have a projection; popularity.npy.
FORMAT_VERSION = 3

SCHEMA_FILE = "schema.json"
TOWERS_FILE = "towers.json"
QUERY_TOWER_FILE = "query_tower.tflite"
ITEMS_FILE = "items.parquet"
ITEM_FEATURES_FILE = "item_features.arrow"
USERS_FILE = "users.parquet"
SEARCHER_FILE = "searcher.json"
VOCABULARY_DIR = "vocabulary"
SCANN_DIR = "scann"
ITEM_TOWER_DIR = "item_tower"
ITEM_TOWER_FILE = "item_tower.tflite"
USER_TOWER_DIR = "user_tower"
PROBES_DIR = "probes"
POPULARITY_FILE = "popularity.npy"
# In the facts, taken from the model: "start" or "trained", and why.
TOWERS_FACT, TOWERS_WHY_FACT = "towers", "towers_why"
# In the same: the parts of the split that the towers have learned from. Bundles without it: train and valid.
LEARNED_FACT = "learned_from"
# In the facts: why exact search is served although trees were tried, and what would help.
EXACT_WHY_FACT = "exact_why"
BACKTEST_DIR = "backtest"


@dataclass(frozen=True)
class Probes:
    """Golden probes: users with the answers that exact search gave when the bundle was built.

    records: raw user records, as ``Retriever.retrieve`` takes them.
    vectors: ``[probes, dim] float32``, the query tower's vectors for them.
    neighbors: ``[probes, k]``, exact search's answer to the vectors.
    """

    records: tuple[dict[str, Any], ...]
    vectors: Vectors
    neighbors: Neighbors


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Large parts are read once, on first use.

    ``held`` keeps the directory from being removed for as long as the bundle is used, where it is a copy in the cache.
    """

    dir: Path
    manifest: Manifest
    held: Hold | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, directory: Path, *, verify: bool = True) -> Bundle:
        """Opens the bundle in a local directory.

        Args:
            directory: the bundle.
            verify: compare every file's checksum with the manifest (about a second per gigabyte).

        Raises:
            ArtifactError: missing, damaged, of another kind or a newer format; the file is named.
        """
        artifact = open_artifact(directory, kind=KIND, format_version=FORMAT_VERSION, verify=verify)
        return cls.of(artifact)

    @classmethod
    def of(cls, artifact: Artifact) -> Bundle:
        """The bundle in an artifact that is already open."""
        return cls(dir=artifact.dir, manifest=artifact.manifest)

    @property
    def space(self) -> str:
        """Name of the vector space: vectors of another space have no meaning here."""
        return str(self.towers["space"])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return int(self.vectors.shape[0])

    @property
    def query_tower(self) -> Path:
        """The LiteRT file of the query tower."""
        return self.dir / QUERY_TOWER_FILE

    @property
    def item_tower(self) -> Path:
        """The LiteRT file of the item tower; a bundle may have none."""
        return self.dir / ITEM_TOWER_FILE

    @property
    def delta_sequence(self) -> int:
        """Number of the last entry of the registry's log before the tables began to be read: later ones are not in the
        bundle. 0 in format version 1."""
        return int(self.manifest.facts.get("delta_sequence", 0)) if self.manifest.format_version > 1 else 0

    @property
    def as_of_us(self) -> int:
        """The moment from which the items' ages count, microseconds UTC; in format version 1 when it was built."""
        moment = self.manifest.facts.get("as_of_us")
        if moment is not None:
            return int(moment)
        return round(datetime.datetime.fromisoformat(self.manifest.created_at).timestamp() * 1_000_000)

    @functools.cached_property
    def schema(self) -> DatasetSchema:
        """The data set's schema."""
        file = self.dir / SCHEMA_FILE
        try:
            return DatasetSchema.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as err:
            raise ArtifactError(f"{file}: expected a schema ({err}). Build the bundle again.") from err

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What was fitted on the train window, including the item ids in row order."""
        return Vocabulary.load(self.dir / VOCABULARY_DIR)

    @functools.cached_property
    def towers(self) -> dict[str, Any]:
        """``towers.json``: the towers' settings, the space, the history length, the input names."""
        return read_json(self.dir / TOWERS_FILE)

    @functools.cached_property
    def vectors(self) -> Vectors:
        """``[items, dim] float32`` in row order, a read-only memory map."""
        return load_vectors(self.dir / VECTORS_FILE)

    @functools.cached_property
    def items(self) -> pa.Table:
        """``item_id`` and what the catalogue has on each item (attributes, advertiser, title), in row order."""
        return pq.read_table(self.dir / ITEMS_FILE)

    def some_items(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """``[n]`` rows of ``items``, in their order; of the file only the row groups that have them are read."""
        if "items" in vars(self):
            return taken(self.items, rows)
        return read_rows(self.dir / ITEMS_FILE, rows)

    @functools.cached_property
    def items_schema(self) -> pa.Schema:
        """Columns of ``items``, without reading them. Once they are read, the file may be gone."""
        return self.items.schema if "items" in vars(self) else pq.read_schema(self.dir / ITEMS_FILE)

    @functools.cached_property
    def item_features(self) -> ItemFeatures | None:
        """The raw columns of the item features, by row; None in format version 1."""
        return ItemFeatures(self.dir / ITEM_FEATURES_FILE) if self.manifest.format_version > 1 else None

    @functools.cached_property
    def item_types(self) -> ItemTypes:
        """What the cells of a changed ad are converted to."""
        stored = {field.name: field for field in self.items_schema}
        if self.item_features is not None:
            stored |= {field.name: field for field in self.item_features.schema}
        return ItemTypes.of(self.schema, self.vocabulary.item_ids.type, pa.schema(list(stored.values())))

    @functools.cached_property
    def popularity(self) -> Float64:
        """``[items] float64``: how much each item is chosen: the order for users of whom nothing is known. 0 for an
        item that nobody chose before the night. Bundles without the file rank by train events.

        Raises:
            ArtifactError: the file cannot be read, or is of another catalogue.
        """
        file = self.dir / POPULARITY_FILE
        if POPULARITY_FILE not in self.manifest.files:
            return self.vocabulary.item_frequency.astype(np.float64)
        try:
            found = np.asarray(_load(file), np.float64)
        except (OSError, ValueError) as err:
            raise ArtifactError(f"{file}: expected an array ({err}). Build the bundle again.") from err
        if found.shape != (self.num_items,):
            raise ArtifactError(
                f"{file}: expected {self.num_items} numbers, one per item, got shape {found.shape}. Build the bundle "
                "again."
            )
        return found

    @functools.cached_property
    def value(self) -> Value | None:
        """The value dimension; None if the bundle was built without one."""
        return load_value(self.dir)

    @functools.cached_property
    def users(self) -> pa.Table | None:
        """``user_id``, raw features and history of each user; None if the bundle was built without users."""
        file = self.dir / USERS_FILE
        return _with_moments(pq.read_table(file)) if file.exists() else None

    @functools.cached_property
    def spec(self) -> SearcherSpec:
        """Engine, settings and measurements."""
        file = self.dir / SEARCHER_FILE
        try:
            return SearcherSpec.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as err:
            raise ArtifactError(f"{file}: expected a searcher's settings ({err}). Build the bundle again.") from err

    @functools.cached_property
    def exact(self) -> ExactSearcher:
        """Exact search over the bundle's vectors."""
        return ExactSearcher(self.vectors, checked=True)

    @functools.cached_property
    def searcher(self) -> Searcher:
        """The searcher that the builder chose."""
        return load_searcher(self.dir, self.spec, self.vectors)

    def record_embedder(self) -> RecordEmbedder:
        """Opens the query tower for raw user records.

        Raises:
            ArtifactError: the tower is not a LiteRT model, or does not fit the schema or the vectors.
        """
        return RecordEmbedder(self.query_tower.read_bytes(), self.schema, self.vocabulary, self.vectors)

    @functools.cached_property
    def probes(self) -> Probes:
        """The golden probes."""
        return load_probes(self.dir / PROBES_DIR)

    @functools.cached_property
    def backtest(self) -> Bundle | None:
        """The bundle inside this one whose towers have not seen the held-out windows; None if there is none.

        Its checksums are among this bundle's own.

        Raises:
            ArtifactError: a file is missing or of another size, or it is of a newer format.
        """
        # Asked of the manifest: a version that retention removes meanwhile must not count as one without a backtest.
        if f"{BACKTEST_DIR}/{MANIFEST_FILE}" not in self.manifest.files:
            return None
        folder = self.dir / BACKTEST_DIR
        inner = Bundle.of(open_artifact(folder, kind=KIND, format_version=FORMAT_VERSION, verify=False))
        return replace(inner, held=self.held)

    @property
    def measured(self) -> Bundle:
        """The bundle to ask for figures on held-out events: the backtest's if there is one, else this one.

        Raises:
            ArtifactError: as ``backtest``.
        """
        return self if self.backtest is None else self.backtest


def load_searcher(directory: Path, spec: SearcherSpec, vectors: Vectors) -> Searcher:
    """Returns the searcher below a bundle's directory.

    Raises:
        ArtifactError: ScaNN cannot read its assets.
        ConfigError: ScaNN is needed and not installed.
    """
    if spec.engine == "exact":
        return ExactSearcher(vectors, checked=True)
    value = load_value(directory)
    if value is not None:
        return load_value_searcher(value, directory / SCANN_DIR, spec.shards)
    if spec.shards == 1:
        return ScannSearcher.load(directory / SCANN_DIR, vectors)
    return ShardedSearcher.load(directory / SCANN_DIR, vectors, spec.shards)


def save_probes(probes: Probes, directory: Path) -> None:
    """Creates ``directory`` and writes the probes there."""
    directory.mkdir()
    (directory / "records.json").write_text(json.dumps(list(probes.records), default=_as_json))
    np.save(directory / "vectors.npy", probes.vectors)
    np.save(directory / "rows.npy", probes.neighbors.rows)
    np.save(directory / "scores.npy", probes.neighbors.scores)


def load_probes(directory: Path) -> Probes:
    """Reads what ``save_probes`` wrote.

    Raises:
        ArtifactError: a file is missing or cannot be read.
    """
    try:
        records = tuple(_timed(record) for record in json.loads((directory / "records.json").read_text()))
        neighbors = Neighbors(_load(directory / "rows.npy"), _load(directory / "scores.npy"))
        return Probes(records, _load(directory / "vectors.npy"), neighbors)
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{directory}: the probes cannot be read ({err}). Build the bundle again.") from err


def _as_json(value: object) -> object:
    """Times as ISO text."""
    return value.to_pylist() if isinstance(value, pa.Array) else str(value)


def _timed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with times in place of integers: the first bundles hold microseconds UTC."""
    return {key: _moments(value) if key in ("time", "history_time") else value for key, value in record.items()}


def _moments(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], int):
        return pa.array(value, pa.int64()).view(MOMENT)
    return pa.scalar(value, pa.int64()).cast(MOMENT).as_py() if isinstance(value, int) else value


def _with_moments(users: pa.Table) -> pa.Table:
    """The users with timestamps in place of integers: the first bundles hold microseconds UTC."""
    wanted = {"time": MOMENT, "history_time": pa.list_(MOMENT)}
    fields = [pa.field(field.name, wanted.get(field.name, field.type)) for field in users.schema]
    return users.cast(pa.schema(fields))


def _load(file: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(file, allow_pickle=False)
    return array


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        ArtifactError: the file is missing or holds something else.
    """
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{file}: expected JSON ({err}). Write the artifact again.") from err
    if not isinstance(value, dict):
        raise ArtifactError(f"{file}: expected an object, got {type(value).__name__}. Write the artifact again.")
    return value
