"""One opened version: everything of a bundle that answers requests, in one immutable object.

Reads a bundle. A retriever holds one of these and swaps it as a whole: each call takes the version once and keeps it to
its end.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from index.inference.item_ids import ItemIds
from index.inference.query_tower import QueryTower
from index.inference.records import Clock, RecordReader
from index.inference.request_ids import one_id
from index.inference.user_records import records_of
from index.registry.bundle import Bundle
from index.retrieval.live.popularity import Popularity
from index.retrieval.live.telling import telling_dimensions
from index.rules.attributes import Attributes, Mask
from index.rules.eligible import Eligible, EligibleCache
from index.rules.planner import Planner
from index.rules.where import mask_of
from index.search.searcher import Rows, Searcher, Vectors
from index.settings import RETRIEVER_FILE, RetrieverSettings
from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.vocabulary import ValueTable

MIB = 1 << 20


@dataclass(frozen=True)
class ServingVersion:
    """A bundle opened for serving. Safe to use from many threads.

    version: its name. vectors: ``[items, dim] float32`` in memory, in row order, fresh ads at the end. catalogue: the
    items table with fresh ads. delta_sequence: the last change of the registry's log that was laid out; ads that later
    ones pause or remove are hidden all the same.
    """

    version: str
    bundle: Bundle
    items: ItemIds
    vectors: Vectors
    searcher: Searcher
    reader: RecordReader
    tower: QueryTower
    planner: Planner
    attributes: Attributes
    settings: RetrieverSettings
    eligibles: EligibleCache
    popularity: Popularity
    catalogue: pa.Table
    delta_sequence: int = 0

    @classmethod
    def open(
        cls, bundle: Bundle, version: str, clock: Clock, settings: RetrieverSettings | None = None
    ) -> ServingVersion:
        """Loads and warms an open bundle.

        Args:
            bundle: the bundle.
            version: its name.
            clock: for records without a time.
            settings: None takes those the bundle was built with, or the defaults.

        Raises:
            ArtifactError: the bundle's parts cannot be read or do not fit each other.
        """
        items = ItemIds(bundle.vocabulary.item_ids)
        if len(items) != bundle.num_items:
            raise ArtifactError(
                f"{bundle.dir}: {len(items)} item ids, but {bundle.num_items} vectors. Build the bundle again."
            )
        tower = QueryTower(bundle.query_tower.read_bytes(), bundle.schema, bundle.vocabulary.user, bundle.vectors)
        value = bundle.value
        chosen = settings_of(bundle) if settings is None else settings
        opened = cls(
            version=version,
            bundle=bundle,
            items=items,
            vectors=bundle.vectors,
            searcher=bundle.searcher,
            reader=RecordReader(bundle.schema, items, tower.history_length, clock),
            tower=tower,
            planner=Planner.of(bundle.searcher, bundle.vectors, None if value is None else value.log_values),
            attributes=attributes_of(bundle, bundle.items),
            settings=chosen,
            eligibles=EligibleCache(int(chosen.rule_cache_mib * MIB)),
            popularity=Popularity.of(bundle.popularity),
            catalogue=bundle.items,
        )
        opened.warm()
        return opened

    @property
    def space(self) -> str:
        """Name of the vector space."""
        return self.bundle.space

    @property
    def num_items(self) -> int:
        """Rows of the catalogue, dead ones included."""
        return len(self.items)

    @property
    def alive(self) -> Mask | None:
        """``[items] bool``: rows that may be shown; None means all."""
        return self.planner.alive

    @property
    def num_alive(self) -> int:
        """How many ads may be shown."""
        return self.searcher.num_items

    def living(self, rows: Rows) -> Rows:
        """Those of ``[n] int32`` rows that may be shown, in their order."""
        return rows if self.alive is None else rows[self.alive[rows]]

    def tells(self, query: Vectors) -> bool:
        """Whether a user's vector, ``[dim] float32``, ranks the catalogue: it does not score all items the same."""
        telling = self._telling
        return bool(np.count_nonzero(query if telling is None else query[telling]))

    @functools.cached_property
    def _telling(self) -> Bools | None:
        return telling_dimensions(self.vectors)

    def eligible(self, where: str) -> Eligible:
        """The rows that a rule leaves; kept for the next call with the same text.

        Raises:
            SchemaError: the rule cannot be read or does not fit the attributes.
        """
        if not isinstance(where, str):
            raise SchemaError(f"where: expected text such as 'price < 10', got {where!r:.80}")
        return self.eligibles.get(where, lambda: self.lay_out(mask_of(where, self.attributes)))

    def new_items(self, where: str | None) -> Eligible:
        """The rows that a rule leaves and that nobody chose before the night; kept like those of ``eligible``."""

        def lay_out() -> Eligible:
            mask = self.popularity.strength == 0
            return self.lay_out(mask if where is None else mask & self.eligible(where).mask)

        return self.eligibles.get(("new items", where), lay_out)

    def lay_out(self, mask: Mask, *, gather: bool = True) -> Eligible:
        """Lays out the rows that ``mask [items] bool`` leaves and that may be shown."""
        mask = mask if self.alive is None else mask & self.alive
        room = int(self.settings.rule_vectors_mib * MIB) if gather else 0
        return Eligible.of(mask, self.planner.leaves, self.vectors, self.planner.log_values, gather_bytes=room)

    def group_shares(self, attribute: str) -> npt.NDArray[np.float64]:
        """Share of the ads without a value of the attribute, then of each of its values."""
        shares = self._shares.get(attribute)
        if shares is None:
            groups = self.attributes.groups(attribute)
            counts = np.bincount((groups if self.alive is None else groups[self.alive]) + 1, minlength=1)
            shares = self._shares[attribute] = counts / max(1, self.num_alive)
        return shares

    @functools.cached_property
    def _shares(self) -> dict[str, npt.NDArray[np.float64]]:
        return {}

    @functools.cached_property
    def action_weights(self) -> npt.NDArray[np.float64]:
        """``[actions] float64`` by action code."""
        return np.array(self.bundle.schema.action_weights)

    @functools.cached_property
    def _user_places(self) -> ValueTable | None:
        users = self.bundle.users
        return None if users is None else ValueTable(users["user_id"].combine_chunks())

    def user_record(self, user_id: object) -> dict[str, Any] | None:
        """The raw record of a user in the bundle's own table; None if it has no such user.

        A text that can be no id of the users' type is in no table.

        Raises:
            ArtifactError: the bundle was built without users.
            SchemaError: it is neither a text nor an id of the users' type.
        """
        users, places = self.bundle.users, self._user_places
        if users is None or places is None:
            raise ArtifactError(
                f"version {self.version}: built without users, so none can be retrieved by id. Give the raw record, or "
                "build with include_users = true."
            )
        try:
            place = places.place(one_id(user_id, ColumnType.for_ids(places.values.type), "user_id"))
        except SchemaError:
            if isinstance(user_id, str) and user_id:
                return None
            raise
        return records_of(users.slice(place, 1))[0] if place >= 0 else None

    def describe(self, rows: Rows) -> pa.Table:
        """The item table's entries for ``[n] int32`` rows, in their order."""
        return self.catalogue.take(pa.array(rows))

    def warm(self) -> None:
        """Loads what the first requests would otherwise wait for, or not find after retention removed the version."""
        self.space  # noqa: B018
        request = self.reader.read({})
        vector = self.tower.embed(request, {})
        self.searcher.search(vector, min(100, self.num_items))
        self.tells(vector)
        if self.settings.new_items_share > 0.0:
            self.new_items(None)
        self._user_places  # noqa: B018


def attributes_of(bundle: Bundle, items: pa.Table) -> Attributes:
    """The attributes of a bundle's items, those of its deltas included."""
    roles = bundle.schema.tables.items
    advertiser = None if roles is None else roles.advertiser_id
    return Attributes(items, ("item_id",) if advertiser is None else ("item_id", advertiser))


def settings_of(bundle: Bundle) -> RetrieverSettings:
    """The bundle's own ``retriever.json``, or the defaults if it has none.

    Raises:
        ArtifactError: the file cannot be read.
    """
    file = bundle.dir / RETRIEVER_FILE
    if not file.exists():
        return RetrieverSettings()
    try:
        return RetrieverSettings.model_validate_json(file.read_bytes())
    except ValidationError as err:
        raise ArtifactError(f"{file}: expected a retriever's settings ({err}). Build the bundle again.") from err
