"""Embeds ads that are new to a version, or that changed: raw columns to vectors, by the version's own item tower.

Reads a bundle's item tower, vocabulary and schema. Ages count from the bundle's ``as_of_us`` and not from the clock:
the vectors of one index are comparable, and every replica computes the same.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from index.forking import never_free
from index.inference.item_tower import LiteItemTower
from index.search.searcher import Vectors, check_vectors
from pipelines.contracts.encoding import encode_table
from pipelines.contracts.errors import ArtifactError, TowerlineError
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.vocabulary import Vocabulary


class Embeds(Protocol):
    """What a bundle has to embed an ad."""

    @property
    def item_tower(self) -> Path:
        """The LiteRT file of the item tower; it may be missing."""
        ...

    @property
    def schema(self) -> DatasetSchema:
        """The data set's schema."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """What was fitted."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def as_of_us(self) -> int:
        """The moment of the catalogue, microseconds UTC."""
        ...


@dataclass(frozen=True)
class Embedded:
    """``vectors [ads, dim] float32``, zeros for the ads that ``refused`` names by their place, with the reason."""

    vectors: Vectors
    refused: dict[int, TowerlineError]


class ItemEmbedder:
    """The item tower of one bundle, opened at its first use or by ``warm``. Safe to use from many threads, and in a
    forked process, which opens its own: an interpreter's threads do not survive a fork."""

    def __init__(self, bundle: Embeds) -> None:
        """Takes the bundle; nothing is read."""
        self._bundle = bundle
        self._tower: LiteItemTower | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    def warm(self) -> None:
        """Opens the tower, if the bundle has one, and embeds an ad without any feature: afterwards the first ad is as
        fast as any, and the file may be gone."""
        if self._tower is not None or self._bundle.item_tower.exists():
            self.embed(pa.table({self._bundle.schema.id_column("item"): self._bundle.vocabulary.item_ids.slice(0, 1)}))

    def embed(self, raw: pa.Table) -> Embedded:
        """Embeds ads; those that the vocabulary lacks are embedded by content.

        Args:
            raw: the raw columns of the features, the id column included; an absent one counts as null.
        """
        try:
            return Embedded(self._vectors(raw), {})
        except TowerlineError as err:
            if len(raw) == 1 or not self._bundle.item_tower.exists():
                vectors = np.zeros((len(raw), self._bundle.dim), np.float32)
                return Embedded(vectors, dict.fromkeys(range(len(raw)), err))
        alone = [self.embed(raw.slice(place, 1)) for place in range(len(raw))]
        vectors = np.concatenate([one.vectors for one in alone])
        return Embedded(vectors, {place: one.refused[0] for place, one in enumerate(alone) if one.refused})

    def _vectors(self, raw: pa.Table) -> Vectors:
        """``[ads, dim] float32``.

        Raises:
            SchemaError: a column does not fit its feature.
            ArtifactError: the bundle has no item tower, or a vector is not finite or of another length.
        """
        bundle = self._bundle
        if len(raw) == 0:
            return np.zeros((0, bundle.dim), np.float32)
        if self._process != os.getpid():
            if self._tower is not None:
                never_free(self._tower)  # Its threads are the parent's.
            self._tower, self._lock, self._process = None, threading.Lock(), os.getpid()
        encoded = encode_table(bundle.schema.side("item"), bundle.vocabulary.item, raw, as_of_us=bundle.as_of_us)
        with self._lock:
            vectors = check_vectors(self._opened().vectors(encoded), "item tower")
        if vectors.shape[1] != bundle.dim:
            raise ArtifactError(
                f"{bundle.item_tower}: expected vectors of {bundle.dim} numbers, got {vectors.shape[1]}. Build again."
            )
        return vectors

    def _opened(self) -> LiteItemTower:
        if self._tower is None:
            file = self._bundle.item_tower
            if not file.exists():
                raise ArtifactError(
                    f"{file}: missing: the bundle has no item tower, so nothing new can be embedded. Build it again."
                )
            self._tower = LiteItemTower(file)
        return self._tower
