"""Embeds every item of the catalogue with the item tower: ``towerline embed``.

Reads a model (``item_tower/``, ``towers.json``) and features (``items_encoded/``); writes an artifact of kind
``embeddings``: ``vectors.npy``, ``[items, dim] float32`` in row order. A Beam job: one element is a few row groups of
encoded items; the SavedModel is loaded once per process.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.utils.shared import Shared

from index.building.vector_statistics import vector_statistics
from index.registry.bundle import ITEM_TOWER_DIR, TOWERS_FILE, read_json
from index.search.exact import VECTORS_FILE
from index.search.searcher import Vectors
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import Manifest, open_artifact, write_artifact
from pipelines.progress import SILENT, Progress, files_in
from pipelines.runner import new_pipeline, pipeline_options

KIND = "embeddings"
FORMAT_VERSION = 1
ENCODED_ITEMS_DIR = "items_encoded"
# Rows per tower call: the matrices stay in the cache, and the overhead of a call is spread over enough rows.
_BATCH_ROWS = 4096
# Rows per element: a few seconds of work, so that a runner can distribute and retry them.
_ELEMENT_ROWS = 1 << 17
_PARTS_DIR = "parts"


@dataclass(frozen=True)
class EncodedRows:
    """Rows ``start`` to ``end`` of the catalogue: some row groups of one file."""

    file: str
    row_groups: tuple[int, ...]
    start: int
    end: int


def run(model: Path, features: Path, out: Path, beam_args: Sequence[str] = (), *, progress: Progress = SILENT) -> Path:
    """Embeds the catalogue and returns ``out``.

    Args:
        model: the model artifact.
        features: the features artifact the model was trained on: only its codes mean what the towers learned.
        out: where the embeddings go.
        beam_args: options of Beam; none means the runner inside this process.
        progress: shows the parts that are embedded.

    Raises:
        ArtifactError: an input is missing or damaged, the model was trained on other features, or the tower
            returned a vector with NaN or infinity.
        SchemaError: an input of the tower is not among the encoded items.
    """
    model_artifact = open_artifact(model, kind="model", verify=False)
    features_artifact = open_artifact(features, kind="features", verify=False)
    check_trained_on(model_artifact.manifest, features_artifact.manifest, model)
    space = str(read_json(model / TOWERS_FILE)["space"])
    inputs = {"model": model_artifact.manifest.fingerprint, "features": features_artifact.manifest.fingerprint}
    with progress.waiting("embed"), write_artifact(out, kind=KIND, inputs=inputs) as draft:
        parts = draft.dir / _PARTS_DIR
        parts.mkdir()
        elements = list(plan(features / ENCODED_ITEMS_DIR))
        with progress.bar(len(elements), "embedding", "parts", count=files_in(parts)):
            _embed(elements, model / ITEM_TOWER_DIR, parts, beam_args)
        vectors = _merge(elements, parts, draft.dir / VECTORS_FILE)
        draft.facts.update(vector_statistics(vectors), space=space)
    return out


def check_trained_on(model: Manifest, features: Manifest, path: Path) -> None:
    """Refuses a model that was trained on other features.

    Raises:
        ArtifactError: the fingerprints differ.
    """
    trained_on = model.inputs.get("features", features.fingerprint)
    if trained_on != features.fingerprint:
        raise ArtifactError(
            f"{path}: trained on features {trained_on}, but the features given are {features.fingerprint}. "
            "Codes of one mean nothing in the other: run `towerline train`."
        )


def plan(directory: Path) -> Iterator[EncodedRows]:
    """Cuts the encoded items into elements of about ``_ELEMENT_ROWS`` rows, in row order.

    Raises:
        ArtifactError: there are no encoded items.
    """
    files = sorted(directory.glob("*.parquet"))
    start = 0
    for file in files:
        metadata = pq.read_metadata(file)
        groups: list[int] = []
        end = start
        for group in range(metadata.num_row_groups):
            groups.append(group)
            end += metadata.row_group(group).num_rows
            if end - start >= _ELEMENT_ROWS or group == metadata.num_row_groups - 1:
                yield EncodedRows(str(file), tuple(groups), start, end)
                groups, start = [], end
    if start == 0:
        raise ArtifactError(f"{directory}: expected encoded items, found none. Run `towerline features`.")


def _embed(elements: Sequence[EncodedRows], tower: Path, parts: Path, beam_args: Sequence[str]) -> None:
    with new_pipeline(pipeline_options(beam_args)) as pipeline:
        _ = (
            pipeline
            | "List encoded items" >> beam.Create(elements)
            | "Spread over workers" >> beam.Reshuffle()
            | "Embed items" >> beam.ParDo(EmbedItems(tower, parts))
        )


class EmbedItems(beam.DoFn):
    """Embeds an element and writes its vectors to a file of its own, completely or not at all."""

    def __init__(self, tower: Path, parts: Path) -> None:
        self._tower = tower
        self._parts = parts
        self._shared = Shared()

    def setup(self) -> None:
        """Loads the item tower, once per process."""
        self._item_tower = self._shared.acquire(lambda: SavedItemTower(self._tower), tag=str(self._tower))

    def process(self, element: EncodedRows) -> None:
        """Writes ``parts/<start>.npy``, ``[rows, dim] float32``."""
        table = pq.ParquetFile(element.file).read_row_groups(list(element.row_groups))
        vectors = self._item_tower.vectors(encoded_columns(table))
        check_finite(vectors, element.start)
        aside = self._parts / f".{element.start}.{os.getpid()}.{uuid.uuid4().hex[:8]}.npy"
        np.save(aside, vectors)
        os.replace(aside, part_file(self._parts, element))


def part_file(parts: Path, element: EncodedRows) -> Path:
    """Where an element's vectors go."""
    return parts / f"{element.start:012d}.npy"


class SavedItemTower:
    """The item tower's SavedModel. TensorFlow is imported when an object is created."""

    def __init__(self, directory: Path) -> None:
        """Loads the SavedModel.

        Raises:
            ArtifactError: it is missing or cannot be loaded.
        """
        import tensorflow as tf

        try:
            # The loaded object must be kept: the signature holds its variables weakly.
            self._loaded = tf.saved_model.load(str(directory))
            self._signature = self._loaded.signatures["serving_default"]
        except (OSError, KeyError, ValueError) as err:
            raise ArtifactError(f"{directory}: expected a SavedModel of the item tower ({err}). Train again.") from err
        self._inputs = self._signature.structured_input_signature[1]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the encoded features that the tower reads."""
        return tuple(sorted(self._inputs))

    def vectors(self, columns: dict[str, npt.NDArray[Any]]) -> Vectors:
        """Embeds encoded items.

        Args:
            columns: encoded features, ``[items, ..]`` each (``pipelines.contracts.encoding``); those the tower does
            not read are ignored.

        Returns:
            ``[items, dim] float32``.

        Raises:
            SchemaError: a feature that the tower reads is missing.
        """
        missing = sorted(set(self._inputs) - set(columns))
        if missing:
            raise SchemaError(
                f"encoded items: expected the item tower's inputs, {', '.join(missing)} missing. "
                "The features were made with another schema: train again."
            )
        rows = len(columns[self.input_names[0]])
        return np.concatenate(
            [self._batch(columns, slice(start, start + _BATCH_ROWS)) for start in range(0, max(rows, 1), _BATCH_ROWS)]
        )

    def _batch(self, columns: dict[str, npt.NDArray[Any]], part: slice) -> Vectors:
        import tensorflow as tf

        feed = {
            name: tf.constant(np.ascontiguousarray(columns[name][part]), dtype=spec.dtype)
            for name, spec in self._inputs.items()
        }
        vectors: Vectors = self._signature(**feed)["vectors"].numpy()
        return vectors


def encoded_columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Encoded features of an ``items_encoded`` or ``users_encoded`` table as arrays, ``[rows, ..]`` each."""
    arrays = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            width = column.type.list_size
            arrays[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
        elif pa.types.is_primitive(column.type):
            arrays[name] = column.to_numpy(zero_copy_only=False)
    return arrays


def check_finite(vectors: Vectors, start: int) -> None:
    """Refuses a vector with NaN or infinity.

    Raises:
        ArtifactError: the catalogue's row is named.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = start + int(np.argmin(finite))
        raise ArtifactError(
            f"item tower: expected finite vectors, row {row} of the catalogue got NaN or infinity "
            f"({int((~finite).sum())} of {len(vectors)} in its part). The tower diverged: train again with a lower "
            "learning rate, or look at the row's features."
        )


def _merge(elements: Sequence[EncodedRows], parts: Path, out: Path) -> Vectors:
    """Puts the parts into one file, in row order, and removes them."""
    dim = int(np.load(part_file(parts, elements[0]), mmap_mode="r").shape[1])
    vectors = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=(elements[-1].end, dim))
    for element in elements:
        file = part_file(parts, element)
        vectors[element.start : element.end] = np.load(file, mmap_mode="r")
        file.unlink()
    vectors.flush()
    for abandoned in parts.iterdir():
        abandoned.unlink()
    parts.rmdir()
    return vectors
