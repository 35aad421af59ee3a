"""Raw user records to vectors for the batch stages, with the same code that the retriever runs.

Reads a query tower. Needs neither TensorFlow nor Beam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from index.inference.item_ids import ItemIds
from index.inference.query_tower import QueryTower
from index.inference.records import RecordReader
from index.search.searcher import Vectors
from pipelines.contracts.kinds.feature import RECORD_KEYS
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.vocabulary import Vocabulary


class RecordEmbedder:
    """Embeds records for one model and catalogue."""

    def __init__(self, tower: bytes, schema: DatasetSchema, vocabulary: Vocabulary, vectors: Vectors) -> None:
        """Opens the tower.

        Args:
            tower: the LiteRT file's bytes.
            schema: of the features the tower was trained on.
            vocabulary: the same.
            vectors: ``[items, dim] float32``, for the histories.

        Raises:
            ArtifactError: the file is not a LiteRT model, or does not fit the schema or the vectors.
        """
        self._tower = QueryTower(tower, schema, vocabulary.user, vectors)
        self._reader = RecordReader(schema, ItemIds(vocabulary.item_ids), self._tower.history_length)
        columns = {column for feature in schema.side("user") for column in feature.raw_columns}
        self._known = {*RECORD_KEYS, *columns}

    def vectors(self, records: Sequence[Mapping[str, Any]]) -> Vectors:
        """``[records, dim] float32``. Columns that this schema does not have (those of another version) are ignored.

        Raises:
            SchemaError: a record's value does not fit the schema.
        """
        made = np.empty((len(records), self._tower.dim), np.float32)
        for line, record in enumerate(records):
            known = {key: value for key, value in record.items() if key in self._known}
            made[line] = self._tower.embed(self._reader.read(known), known)
        return made
