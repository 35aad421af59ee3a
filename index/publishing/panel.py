"""The panel: a fixed set of users for whom a new bundle and the live one are both asked, as they would be served.

Reads a features artifact. Users without a history and users in no table are among them, as often as among the users
with held-out events.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index.evaluation.sections.slices import Cut, column_cuts
from index.evaluation.towers_measured import begins_us
from index.inference.user_records import UserRecords, records_of
from index.registry.bundle import Bundle
from pipelines.contracts.arrays import Int64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import read_manifest
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.contracts.vocabulary import ValueTable, Vocabulary
from pipelines.sequences.held_out import HeldOut, held_out_events
from pipelines.sequences.item_sets import ItemSets
from pipelines.sequences.reader import load_items

# The panel's own seed: the same users every night, different from the tuner's.
_SEED = 1789
TEST = SPLITS.index("test")


@dataclass(frozen=True)
class Panel:
    """Some users of a features artifact.

    features: where it is. known: all its users. users: ``[panel] int64`` places among them. test_from_us: where the
    test part begins; None if it is not the same moment for all users.
    """

    features: Path
    known: UserRecords
    schema: DatasetSchema
    catalogue: ValueTable
    users: Int64
    test_from_us: int | None

    @classmethod
    def of(cls, features: Path, size: int) -> Panel:
        """Chooses users by a stable hash: those with held-out events first, whether they have a history or not.

        Only a user with a history shows what the search finds, so at least half as many as asked for have one, if there
        are enough. Then there may be more users than asked for.

        Args:
            features: those the bundle was built from.
            size: number of users; fewer if there are not enough.

        Raises:
            ArtifactError: the features are missing or damaged.
        """
        opened = _opened(features)
        users, weights = opened.known, opened.schema.action_weights
        chosen = users.sample(size, _SEED, np.flatnonzero(held_out_events(users.events, TEST, weights).counts))
        searched = int(np.isin(chosen, users.with_history).sum())
        missing = max(size - len(chosen), size // 2 - searched)
        if missing > 0:
            others = np.setdiff1d(users.with_history, chosen)
            chosen = np.concatenate([chosen, users.sample(missing, _SEED, others)])
        return dataclasses.replace(opened, users=chosen)

    def in_features(self, features: Path) -> Panel:
        """The same users in another features artifact, which may know more of their events.

        Raises:
            ArtifactError: the features are missing or damaged.
        """
        opened = _opened(features)
        places = ValueTable(opened.known.user_ids).places(self.known.user_ids.take(pa.array(self.users)))
        return dataclasses.replace(opened, users=places[places >= 0].astype(np.int64))

    def records(self, bundle: Bundle) -> list[dict[str, Any]]:
        """The users' raw records with the columns that a bundle's towers read, as of the start of the test part.

        Raises:
            SchemaError: the towers read a column that the features do not have.
        """
        asked = self.schema.model_copy(update={"features": bundle.schema.features, "history": bundle.schema.history})
        table = self.known.table(self.users, asked, self.catalogue.values)
        lacking = _user_columns(asked) - _user_columns(self.schema) - set(table.column_names)
        if lacking:
            raise SchemaError(f"it reads {', '.join(sorted(lacking))}, which the users of the features do not have")
        return records_of(table)

    @functools.cached_property
    def truth(self) -> ItemSets:
        """The held-out items of each user, as rows of the features' catalogue."""
        return HeldOut.of(self.known.events, TEST, self.schema.action_weights, self.users).truth

    @functools.cached_property
    def categories(self) -> tuple[Cut, ...]:
        """The items by value of the first categorical item feature: the most frequent values, the others, missing ones;
        none if there is no such feature."""
        items = load_items(self.features)
        columns = [feature.source for feature in self.schema.side("item") if feature.kind == "categorical"]
        known = [column for column in columns if column in items.column_names]
        return tuple(column_cuts("ads", known[0], items[known[0]])) if known else ()


def _opened(features: Path) -> Panel:
    """A panel without users."""
    schema = DatasetSchema.model_validate_json((features / "schema.json").read_bytes())
    return Panel(
        features=features,
        known=UserRecords.open(features),
        schema=schema,
        catalogue=ValueTable(Vocabulary.load(features / "vocabulary").item_ids),
        users=np.zeros(0, np.int64),
        test_from_us=begins_us(read_manifest(features).facts, schema),
    )


def _user_columns(schema: DatasetSchema) -> set[str]:
    return {column for feature in schema.side("user") for column in feature.raw_columns}
