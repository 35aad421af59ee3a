"""Retrievers on different versions next to a model: a dictionary of ads, changed in the documented order.

Changes are written to the log of a real registry. How fast they are read, how many wait, and what arrives while others
are laid out is drawn by Hypothesis.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from index.inference.item_embedder import Embedded, ItemEmbedder
from index.inference.item_features import write_item_features
from index.registry.bundle import Bundle
from index.registry.delta_log import CHANGE_COLUMN, DELTAS, ID_COLUMN, SAID_COLUMN, DeltaLog
from index.registry.registry import Registry
from index.retrieval.live.delta_follower import DeltaFollower
from index.retrieval.retriever import Retriever
from index.settings import RetrieverSettings
from pipelines.contracts.manifest import write_artifact
from tests.index import serving_bundles

ITEMS, DIM, K = 24, 4, 60
# Ids between, before and after those of the bundle, 1000, 1003 .. 1069.
IDS = [5, *range(1000, 1072), 2000]
PRICES = (1.0, 2.0, 4.0, 8.0)
# The tables of the second version were read after this entry.
SECOND_BEGINS_AFTER = 3
QUERY = np.array([1, -2, 1, 1], np.float32)


def drawn(item_id: int, price: float) -> np.ndarray:
    """Coarse numbers, so that scores are exact and many are equal."""
    return np.random.default_rng([item_id, int(price)]).integers(-1, 2, DIM).astype(np.float32)


class Drawn(ItemEmbedder):
    """Makes vectors of id and price; what is to happen meanwhile happens at the first call."""

    meanwhile: list[Callable[[], None]] = []  # noqa: RUF012

    def embed(self, raw: pa.Table) -> Embedded:
        while Drawn.meanwhile:
            Drawn.meanwhile.pop()()
        rows = zip(raw["item_id"].to_pylist(), raw["price"].to_pylist(), strict=True)
        vectors = [drawn(item_id, price) for item_id, price in rows]
        return Embedded(np.array(vectors, np.float32).reshape(-1, DIM), {})

    def warm(self) -> None:
        pass


@dataclass
class Ad:
    vector: np.ndarray
    popularity: float
    price: float | None
    log_value: float


@dataclass
class Model:
    """One version. ads: those that it ever knew; gone, paused: ids."""

    bundle: Bundle
    ads: dict[int, Ad] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    paused: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        assert self.bundle.value is not None
        self.mean = float(self.bundle.value.log_values.mean())
        prices, logs = self.bundle.items["price"].to_pylist(), self.bundle.value.log_values.tolist()
        for row, item_id in enumerate(self.bundle.vocabulary.item_ids.to_pylist()):
            popularity = float(np.load(self.bundle.dir / "popularity.npy")[row])
            self.ads[item_id] = Ad(self.bundle.vectors[row], popularity, prices[row], logs[row])

    def apply(self, number: int, changes: dict[int, tuple[str, float]]) -> None:
        for item_id, (change, price) in changes.items():
            if change == "pause":
                self.paused.add(item_id)
            elif change == "resume":
                self.paused.discard(item_id)
            elif number <= self.bundle.delta_sequence:
                continue
            elif change == "remove":
                self.gone.add(item_id)
            else:
                before = self.ads.get(item_id)
                if before is None or before.price != price:
                    popularity = 0.0 if before is None else before.popularity
                    self.ads[item_id] = Ad(drawn(item_id, price), popularity, price, math.log(price))
                self.gone.discard(item_id)

    @property
    def shown(self) -> dict[int, Ad]:
        hidden = self.gone | self.paused
        return {item_id: ad for item_id, ad in self.ads.items() if item_id not in hidden}

    def ranked(self, key: Callable[[Ad], float], where: Callable[[Ad], bool] = lambda _: True) -> list[int]:
        """Best first; equals in the order of their ids."""
        passing = [item_id for item_id, ad in self.shown.items() if where(ad)]
        return sorted(passing, key=lambda item_id: (-key(self.shown[item_id]), item_id))


def score(ad: Ad) -> float:
    return float(ad.vector @ QUERY)


def write_registry(root: Path) -> Path:
    """Two versions of the same ads, the second one with a number to begin after."""
    sharing = RetrieverSettings(new_items_share=0.25)
    bundle = serving_bundles.write_bundle(
        root / "bundle", items=ITEMS, dim=DIM, new=4, value_scale=0.3, retriever=sharing
    )
    np.save(bundle / "vectors.npy", np.random.default_rng(3).integers(-1, 2, (ITEMS, DIM)).astype(np.float32))
    # With ties, with items that nobody chose, and unlike the train frequencies.
    popularity = np.random.default_rng(5).choice([0.0, 0.25, 0.75, 3.5], ITEMS)
    np.save(bundle / "popularity.npy", popularity)
    for number, begins_after in enumerate((0, SECOND_BEGINS_AFTER)):
        out = root / "registry" / "versions" / f"v{number}"
        out.parent.mkdir(parents=True, exist_ok=True)
        with write_artifact(out, kind="bundle", format_version=2, inputs={}) as draft:
            shutil.copytree(bundle, draft.dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
            prices = pq.read_table(bundle / "items.parquet", columns=["price"])
            write_item_features(prices.schema, [prices], draft.dir / "item_features.arrow")
            draft.facts.update(delta_sequence=begins_after, as_of_us=0)
    (root / "registry" / "CURRENT").write_text("v1\n")
    return root / "registry"


class Followers(RuleBasedStateMachine):
    """Two retrievers, one on each version, both reading one log."""

    template: Path

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.url = Path(self.folder.name)
        (self.url / "versions").symlink_to(self.template / "versions")
        (self.url / "CURRENT").write_text("v1\n")
        self.log = DeltaLog(Registry(self.url).store)
        self.bundles = [Bundle.open(self.template / "versions" / f"v{number}") for number in (0, 1)]
        self.models = [Model(bundle) for bundle in self.bundles]
        self.retrievers = [self.opened(number) for number in (0, 1)]

    def opened(self, number: int) -> Retriever:
        return Retriever.open(self.url, version=f"v{number}")

    def teardown(self) -> None:
        Drawn.meanwhile.clear()
        if hasattr(self, "folder"):
            self.folder.cleanup()

    changes = st.dictionaries(
        st.sampled_from(IDS),
        st.tuples(st.sampled_from(["upsert", "remove", "pause", "resume"]), st.sampled_from(PRICES)),
        min_size=1,
        max_size=4,
    )

    @rule(changes=changes)
    def change(self, changes: dict[int, tuple[str, float]]) -> None:
        kinds = [kind for kind, _ in changes.values()]
        rows = {
            ID_COLUMN: pa.array(list(changes), pa.int64()),
            CHANGE_COLUMN: pa.array(kinds, pa.string()),
            SAID_COLUMN: pa.array([["price"] if kind == "upsert" else None for kind in kinds], pa.list_(pa.string())),
            "price": pa.array([price for _, price in changes.values()], pa.float64()),
        }
        entry = self.log.append(pa.table(rows))
        for model in self.models:
            model.apply(entry.sequence, changes)

    @rule()
    def damaged(self) -> None:
        place = self.url / DELTAS
        place.mkdir(exist_ok=True)
        (place / f"{self.log.last() + 1:08d}.delta").write_bytes(b"torn")

    @rule(who=st.integers(0, 1))
    def ask(self, who: int) -> None:
        """Whatever waits: nothing is shown that is paused or removed now."""
        hidden = self.models[who].gone | self.models[who].paused
        retriever = self.retrievers[who]
        for answer in (
            retriever.retrieve_vector(QUERY, retriever.space, K),
            retriever.retrieve({"history": [1000, 1003]}, K, where="price < 100"),
            retriever.retrieve({}, K),
            retriever.retrieve_batch([{"history": [1000]}], K)[0],
        ):
            assert not hidden & set(answer.item_ids.tolist())
            assert len(set(answer.item_ids.tolist())) == len(answer)
        seen = follower(retriever)._now.read
        assert seen == self.log.last()

    @rule(who=st.integers(0, 1), meanwhile=st.none() | changes)
    def settle(self, who: int, meanwhile: dict[int, tuple[str, float]] | None) -> None:
        """Lays out what was read; more may arrive and be read in the middle."""

        def arrive() -> None:
            if meanwhile is not None:
                self.change(meanwhile)
                self.ask(who)

        Drawn.meanwhile.append(arrive)
        self.retrievers[who].retrieve({}, 1)
        follower(self.retrievers[who])._laid_out()
        while Drawn.meanwhile:
            Drawn.meanwhile.pop()()
        self.ask(who)

    @rule(who=st.integers(0, 1))
    def reopen(self, who: int) -> None:
        self.retrievers[who] = self.opened(who)

    @rule(who=st.integers(0, 1))
    def compare(self, who: int) -> None:
        """Everything read and laid out: all answers are those of the model."""
        model, retriever = self.models[who], self.retrievers[who]
        retriever.retrieve({}, 1)
        while follower(retriever)._laid_out():
            pass
        shown = model.shown
        assert retriever.num_items == len(shown)
        everything = retriever.retrieve_vector(QUERY, retriever.space, K, where=None)
        new = [item_id for item_id, ad in shown.items() if ad.popularity == 0]
        sources = dict(zip(everything.item_ids.tolist(), everything.sources.tolist(), strict=True))
        assert set(sources) == set(shown)
        assert {item_id for item_id, source in sources.items() if source == "new items"} <= set(new)
        rows = everything.item_ids[everything.sources == "towers"].tolist()
        assert rows == [item_id for item_id in model.ranked(score) if item_id in set(rows)]
        assert retriever.retrieve({}, K).item_ids.tolist() == model.ranked(lambda ad: ad.popularity)
        for k in (1, 3, 7):
            cheap = retriever.retrieve({}, k, where="price <= 2").item_ids.tolist()
            best = model.ranked(lambda ad: ad.popularity, lambda ad: ad.price is not None and ad.price <= 2)
            assert cheap == best[:k]
            served = follower(retriever).poll()
            assert served.items.of(served.searcher.search(QUERY, k).rows).tolist() == model.ranked(score)[:k]
        self.compare_values(model, retriever)

    def compare_values(self, model: Model, retriever: Retriever) -> None:
        found = retriever.retrieve({}, K, value_weight=0.5)
        utilities = {item_id: np.log1p(ad.popularity) + 0.5 * ad.log_value for item_id, ad in model.shown.items()}
        assert set(found.item_ids.tolist()) == set(utilities)
        np.testing.assert_allclose(
            found.scores, [utilities[item_id] for item_id in found.item_ids.tolist()], 1e-5, 1e-5
        )
        assert (np.diff(found.scores) <= 0).all()


def follower(retriever: Retriever) -> DeltaFollower:
    assert isinstance(retriever._follower, DeltaFollower)
    return retriever._follower


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    Followers.template = write_registry(tmp_path_factory.mktemp("followers"))
    with (
        mock.patch("index.retrieval.live.delta_follower.ItemEmbedder", Drawn),
        mock.patch.object(DeltaFollower, "_start"),
    ):
        yield


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Followers,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_followers_of_one_log_answer_as_a_dictionary_does() -> None:
    run(12, 25)


@pytest.mark.slow
def test_followers_of_one_log_answer_as_a_dictionary_does_in_many_histories() -> None:
    run(400, 60)
