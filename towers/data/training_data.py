"""What training reads: the features artifact as arrays in memory.

Reads ``features/``. No TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Int32, Int64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import DatasetSchema, Side, Window
from pipelines.contracts.vocabulary import RESERVED_CODES, FittedCodes, FittedNumbers, Vocabulary
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut

Features = dict[str, npt.NDArray[np.generic]]

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Mined:
    """Items that the live ``version`` of the index returns for each user: ``rows [users, n] int32``, -1 for none."""

    version: str
    rows: Int32


@dataclass(frozen=True)
class TrainingData:
    """A data set as the towers see it.

    ``items`` and ``users`` map a feature's name to its encoded column; the rows of ``users`` are the users of
    ``events``. ``item_frequency [items] int64`` counts each item's train events. ``numbers`` has the
    fitted values of each numeric feature. ``as_of_us``: the moment, in microseconds, to which the columns' times since
    are counted. ``mined [users, n] int32``: items that the live index returns for each user, -1 for none. ``window``:
    what is held out where the windows roll.
    """

    schema: DatasetSchema
    items: Features
    users: Features
    events: EventLists
    item_frequency: Int64
    table_sizes: dict[Side, dict[str, int]]
    frequencies: dict[str, Int64]
    numbers: dict[Side, dict[str, FittedNumbers]]
    as_of_us: int = 0
    mined: Int32 | None = None
    window: Window | None = None

    def weighs(self, events: EventLists) -> npt.NDArray[np.bool_]:
        """``[events]`` whether its action counts; actions of weight 0 in ``[actions]`` are context only."""
        found: npt.NDArray[np.bool_] = np.array(self.schema.action_weights)[events.actions] > 0
        return found

    def held_out(self, split: int) -> HeldOut:
        """The held-out events of a split, of actions that count, and what its users had before."""
        return HeldOut.of(self.events, split, self.schema.action_weights)

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return len(self.item_frequency)

    def features(self, side: Side) -> tuple[Feature, ...]:
        """The features of a side that have an encoded column."""
        return self.schema.side(side)


def load(features: Path) -> TrainingData:
    """Reads the artifact at ``features``.

    Raises:
        ArtifactError: it is missing or damaged.
        SchemaError: it has no items or no train events.
    """
    from pipelines.sequences.reader import Sequences, load_encoded

    artifact = open_artifact(features, kind="features")
    schema = DatasetSchema.model_validate_json((artifact.dir / "schema.json").read_text())
    vocabulary = Vocabulary.load(artifact.dir / "vocabulary")
    # The events' values are not needed here.
    sequences = Sequences.open(artifact.dir)
    events = replace(sequences.events, values=None)
    data = TrainingData(
        schema=schema,
        items=load_encoded(artifact.dir, "item"),
        users=load_encoded(artifact.dir, "user"),
        events=events,
        item_frequency=vocabulary.item_frequency,
        table_sizes={"item": table_sizes(vocabulary, "item"), "user": table_sizes(vocabulary, "user")},
        frequencies={
            name: fitted.frequencies for name, fitted in vocabulary.item.items() if isinstance(fitted, FittedCodes)
        },
        numbers={"item": _numbers(vocabulary, "item"), "user": _numbers(vocabulary, "user")},
        as_of_us=int(artifact.manifest.facts["as_of_us"]),
        window=sequences.window,
    )
    check(data, str(features))
    return _counted(data)


def _counted(data: TrainingData) -> TrainingData:
    """The same, with item frequencies of events that count only: an item id's bias starts there."""
    train = data.events.where(data.events.splits == 0)
    weighs = data.weighs(train)
    if weighs.all():
        return data
    counts = np.bincount(train.rows[weighs], minlength=data.num_items)
    frequencies = dict(data.frequencies)
    for feature in data.features("item"):
        if feature.kind == "id" and feature.hash_buckets is None:
            by_code = np.bincount(data.items[feature.name], counts, data.table_sizes["item"][feature.name])
            frequencies[feature.name] = by_code[RESERVED_CODES:].astype(np.int64)
    return replace(data, frequencies=frequencies)


def table_sizes(vocabulary: Vocabulary, side: Side) -> dict[str, int]:
    """Codes of each coded feature of a side."""
    return {name: fitted.size for name, fitted in vocabulary.side(side).items() if isinstance(fitted, FittedCodes)}


def _numbers(vocabulary: Vocabulary, side: Side) -> dict[str, FittedNumbers]:
    return {name: fitted for name, fitted in vocabulary.side(side).items() if isinstance(fitted, FittedNumbers)}


def check(data: TrainingData, where: str) -> None:
    """Checks that there is something to learn from.

    Raises:
        SchemaError: there are no items, or no event is in the train split, or a feature holds NaN or infinity.
    """
    if data.num_items == 0:
        raise SchemaError(f"{where}: expected at least one item, got an empty catalogue. Check the items table.")
    if not (data.events.splits == 0).any():
        raise SchemaError(
            f"{where}: expected events in the train split, got none of {len(data.events.rows)}. Check [split]."
        )
    for side, columns in (("item", data.items), ("user", data.users)):
        for name, column in columns.items():
            if np.issubdtype(column.dtype, np.floating) and not np.isfinite(column).all():
                bad = int(np.flatnonzero(~np.isfinite(column).reshape(len(column), -1).all(axis=1))[0])
                raise SchemaError(
                    f"{where}: {side} feature {name!r} has a NaN or infinity at row {bad}. Fix the table's column."
                )
