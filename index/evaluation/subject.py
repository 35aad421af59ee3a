"""What is evaluated: one version and the held-out users, opened together and checked to match.

Reads a bundle (or a registry's version) and a features artifact.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index.evaluation.held_out import TEST, held_out, users_with_truth
from index.evaluation.settings import SEED, EvaluationSettings
from index.evaluation.towers_measured import MeasuredTowers, begins_us, learned_from, measured_towers
from index.inference.user_records import UserRecords, records_of
from index.registry.bundle import Bundle
from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from index.search.searcher import Neighbors, Vectors
from pipelines.contracts.arrays import Bools, Float64, Int32, Int64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.vocabulary import ValueTable, Vocabulary
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut, truth_by_action
from pipelines.sequences.item_sets import ItemSets
from pipelines.sequences.reader import load_items
from pipelines.sequences.strengths import by_item, counting

SCHEMA_FILE = "schema.json"


@dataclass(frozen=True)
class EvaluationData:
    """What a version is evaluated on: the users of the features, their held-out events, the catalogue.

    items: the features' items table; item_ids: its ids in row order. fingerprint: of the features. held_out_from_us:
    where the held-out events begin; None if that is not the same moment for all users.
    """

    features: Path
    fingerprint: str
    schema: DatasetSchema
    users: UserRecords
    items: pa.Table
    item_ids: pa.Array
    held_out: HeldOut
    held_out_from_us: int | None

    @classmethod
    def open(cls, features: Path, settings: EvaluationSettings) -> EvaluationData:
        """Opens the features and picks the users.

        Raises:
            ArtifactError: the features are missing or damaged.
            SchemaError: no user has an event in the test part.
        """
        artifact = open_artifact(features, kind="features", verify=False)
        schema = DatasetSchema.model_validate_json((features / SCHEMA_FILE).read_bytes())
        users = UserRecords.open(features)
        return cls(
            features=features,
            fingerprint=artifact.manifest.fingerprint,
            schema=schema,
            users=users,
            items=load_items(features).combine_chunks(),
            item_ids=Vocabulary.load(features / "vocabulary").item_ids,
            held_out=held_out(users, schema, settings.max_users, SEED, context_is_seen=settings.context_is_seen),
            held_out_from_us=begins_us(artifact.manifest.facts, schema),
        )

    @property
    def num_items(self) -> int:
        """Items in the features' catalogue."""
        return len(self.item_ids)

    @property
    def timed(self) -> bool:
        """Whether the events have times."""
        return self.schema.tables.events.time is not None

    @property
    def users_without_truth(self) -> int:
        """Number of users without held-out events."""
        return self.users.num_users - len(users_with_truth(self.users, self.schema))

    @functools.cached_property
    def truth_by_action(self) -> dict[str, ItemSets]:
        """The truth of the held-out users, by name of the action."""
        weights = self.schema.action_weights
        sets = truth_by_action(self.users.events, TEST, weights, self.held_out.users)
        return dict(zip(self.schema.action_names, sets, strict=True))

    def rows_of(self, item_ids: pa.Array) -> Int32:
        """``[n] int32``: the row of each id in the features' catalogue, -1 if it has no such item."""
        return self._places.places(item_ids)

    @functools.cached_property
    def _places(self) -> ValueTable:
        return ValueTable(self.item_ids)

    @functools.cached_property
    def past(self) -> EventLists:
        """Every event before the test part that counts, of all users, not only the evaluated ones.

        Events whose action has weight 0 are context: in histories, but in no count.
        """
        before = self.users.events.before(TEST)
        return before.where(counting(before, self.schema.action_weights))

    @functools.cached_property
    def history_events(self) -> Int64:
        """``[n] int64``: number of each held-out user's events before the test part, those of weight 0 included."""
        return self.users.events.of_users(self.held_out.users).before(TEST).counts

    @functools.cached_property
    def item_events(self) -> Float64:
        """``[items] float64`` events of each item before the test part that count."""
        return by_item(self.past, np.ones(self.past.num_events), self.num_items)


@dataclass(frozen=True)
class Searches:
    """The answers that came from a search. searched: ``[answers] bool``; vectors: ``[searched, dim]``."""

    searched: Bools
    vectors: Vectors


@dataclass(frozen=True)
class Subject:
    """A version to be evaluated on the held-out users.

    version: its name. published: its bundle. retriever: over its backtest's bundle if it has one, else over the version
    itself. to_feature_row: ``[items of the retriever's bundle] int32`` row of each in the features' catalogue, -1 if it
    has none.
    """

    data: EvaluationData
    version: str
    published: Bundle
    retriever: Retriever
    to_feature_row: Int32

    @classmethod
    def open(cls, path: Path | str, data: EvaluationData, version: str | None = None) -> Subject:
        """Opens a bundle or a registry's version.

        Raises:
            ArtifactError: missing or damaged, or the registry has no such version.
            SchemaError: version and features have no item in common.
        """
        retriever = Retriever.open(path, version)
        name, published = retriever.version, retriever.bundle
        if published.backtest is not None:
            retriever = Retriever.open(published.backtest.dir, verify=False)
        rows = data.rows_of(retriever.bundle.vocabulary.item_ids)
        if not (rows >= 0).any():
            raise SchemaError(
                f"{path}: none of its {len(rows)} items is among the {len(data.item_ids)} of {data.features}: they are "
                "of different catalogues. Evaluate a version on features of its own data set."
            )
        return cls(data, name, published, retriever, rows)

    @functools.cached_property
    def bundle(self) -> Bundle:
        """The bundle that is measured: the backtest's if there is one, else the version's own."""
        return self.retriever.bundle

    @functools.cached_property
    def towers(self) -> MeasuredTowers:
        """The towers that are measured."""
        return measured_towers(self.published, self.data.held_out_from_us)

    @functools.cached_property
    def learned_events(self) -> Float64:
        """``[items of the features] float64``: events that count of each item among those that the measured towers have
        learned from."""
        learned = learned_from(self.bundle, self.data.users.events)
        counted = learned.where(counting(learned, self.data.schema.action_weights))
        return by_item(counted, np.ones(counted.num_events), self.data.num_items)

    @functools.cached_property
    def users(self) -> pa.Table:
        """Held-out users as ``retrieve_by_id`` reads them: features, history, moment of the request."""
        return self.data.users.table(self.data.held_out.users, self.bundle.schema, self.data.item_ids)

    def records(self, places: Int64) -> list[dict[str, Any]]:
        """Raw records of some held-out users (``[n]`` places among them)."""
        return records_of(self.users.take(pa.array(places)))

    def answers(self, records: list[dict[str, Any]], k: int, **rules: Any) -> list[Candidates]:
        """The retriever's answers; rules as in ``Retriever.retrieve``."""
        if not rules:
            return self.retriever.retrieve_batch(records, k)
        return [self.retriever.retrieve(record, k, **rules) for record in records]

    def rows_of_answers(self, answers: list[Candidates], k: int) -> Int32:
        """``[answers, k] int32`` rows in the features' catalogue; -1 for an item that the features do not have, and
        after the end of an answer."""
        rows = np.full((len(answers), k), -1, np.int32)
        lengths = np.array([len(answer) for answer in answers], np.int64)
        ids = [answer.item_ids for answer in answers]
        rows[np.arange(k) < lengths[:, None]] = self.data.rows_of(pa.array(np.concatenate(ids)))
        return rows

    def searches(self, records: list[dict[str, Any]], answers: list[Candidates]) -> Searches:
        """The vectors of the records whose answers came from a search, not from popularity."""
        searched = np.array([answer.cold_start != "popularity" for answer in answers], np.bool_)
        vectors = [self.retriever.embed(record) for record, kept in zip(records, searched, strict=True) if kept]
        stacked = np.stack(vectors) if vectors else np.zeros((0, self.bundle.dim), np.float32)
        return Searches(searched, stacked.astype(np.float32))

    def with_searched(self, answers: list[Candidates], searched: Bools, found: Neighbors) -> Int32:
        """``[answers, k] int32``: the answers' rows, with those that were searched replaced by ``found``."""
        k = answers[0].k
        rows = self.rows_of_answers(answers, k)
        padded = np.append(self.to_feature_row, np.int32(-1))[found.rows]
        rows[searched] = -1
        rows[np.ix_(searched, np.arange(padded.shape[1]))] = padded
        return rows

    @functools.cached_property
    def user_vectors(self) -> Vectors:
        """``[n, dim] float32``: vectors of the held-out users with a history, in their order."""
        blocks = range(0, self.data.held_out.num_users, 512)
        records = (self.records(np.arange(b, min(b + 512, self.data.held_out.num_users))) for b in blocks)
        vectors = [self.retriever.embed(one) for block in records for one in block if one.get("history")]
        return np.stack(vectors) if vectors else np.zeros((0, self.bundle.dim), np.float32)

    def published_vectors(self, count: int) -> Vectors:
        """``[n, dim] float32``: vectors of the first held-out users with a history, by the published towers."""
        places = np.flatnonzero(self.data.history_events)[:count].astype(np.int64)
        return self.published.record_embedder().vectors(self.records(places))

    @functools.cached_property
    def in_catalogue(self) -> Bools:
        """``[items of the features] bool``: the version has the item."""
        present = np.zeros(len(self.data.item_ids), np.bool_)
        present[self.to_feature_row[self.to_feature_row >= 0]] = True
        return present
