"""One pause changes one ad, never how thoroughly the version is searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.registry import delta_writer
from index.registry.registry import Registry
from index.retrieval.candidates import Candidates
from index.retrieval.live.delta_follower import DeltaFollower
from index.retrieval.retriever import Retriever
from index.rules import planner
from tests.index import serving_bundles

ITEMS, DIM, K, LEAVES = 4000, 16, 50, 80
RECORDS = [{"history": [1000 + 3 * row, 1000 + 3 * (row + 40)]} for row in range(0, 600, 30)]
# In stock are 80 % of the items: more are fetched and filtered. Of the cheap ones the leaves are scored.
RULES = ["in_stock", "price < 3"]


@pytest.fixture(autouse=True)
def small_catalogues_are_planned_as_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "_EXACT_NUMBERS", 0)
    monkeypatch.setattr(planner, "_LEAF_ROWS", 60)
    monkeypatch.setattr(planner, "_LEAF_ROWS_PER_NEIGHBOR", 1)


@pytest.fixture(scope="module", params=[None, 0.3], ids=["tree", "value"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    return serving_bundles.write_bundle(path, items=ITEMS, dim=DIM, leaves=LEAVES, value_scale=request.param)


def pause_one(registry: Registry, retriever: Retriever) -> int:
    """Pauses the ad that suits the first user least, and returns its row."""
    row = int(retriever.retrieve(RECORDS[0], ITEMS).rows[-1])
    delta_writer.apply(registry.url, pa.table({"item_id": [1000 + 3 * row], "change": ["pause"]}))
    retriever.retrieve(RECORDS[0], 1)
    assert isinstance(retriever._follower, DeltaFollower)
    retriever._follower.wait()
    assert retriever.delta_sequence == 1
    return row


def recall(found: list[Candidates], truth: list[set[int]]) -> float:
    """Mean share of the true rows found."""
    shares = [len(set(answer.rows.tolist()) & rows) / K for answer, rows in zip(found, truth, strict=True)]
    return float(np.mean(shares))


def best_of(retriever: Retriever, passes: np.ndarray, weight: float) -> list[set[int]]:
    """The exact answers, by sorting every item."""
    vectors = serving_bundles.clustered(ITEMS, DIM, 0)
    prices = serving_bundles.attributes(vectors, 0)["price"]
    least = min(price for price in prices if price)
    values = np.log(np.array([price or least for price in prices]))
    truth = []
    for record in RECORDS:
        utilities = np.where(passes, vectors @ retriever.embed(record) + weight * values, -np.inf)
        truth.append(set(np.argsort(-utilities)[:K].tolist()))
    return truth


@pytest.mark.parametrize("where", RULES)
def test_after_a_pause_rules_are_searched_with_the_tuned_effort(bundle: Path, tmp_path: Path, where: str) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(bundle)
    retriever = Retriever.open(registry.url)
    table = serving_bundles.attributes(serving_bundles.clustered(ITEMS, DIM, 0), 0)
    cheap = np.array([price is not None and price < 3 for price in table["price"]])
    passes = np.array(table["in_stock"]) if where == "in_stock" else cheap
    before = [retriever.retrieve(record, K, where=where) for record in RECORDS]
    passes[pause_one(registry, retriever)] = False
    after = [retriever.retrieve(record, K, where=where) for record in RECORDS]
    assert [answer.plan.method for answer in after] == [answer.plan.method for answer in before]
    truth = best_of(retriever, passes, 0.0)
    assert recall(after, truth) >= recall(before, truth) - 0.002


def test_after_a_pause_a_value_weight_is_no_full_scan(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(serving_bundles.write_bundle(tmp_path / "bundle", items=ITEMS, leaves=LEAVES, value_scale=0.3))
    retriever = Retriever.open(registry.url)
    before = [retriever.retrieve(record, K, value_weight=0.1) for record in RECORDS]
    passes = np.ones(ITEMS, bool)
    passes[pause_one(registry, retriever)] = False
    after = [retriever.retrieve(record, K, value_weight=0.1) for record in RECORDS]
    assert "exact" not in {answer.plan.method for answer in after}
    assert max(answer.plan.scored for answer in after) < ITEMS // 10
    truth = best_of(retriever, passes, 0.1)
    assert recall(after, truth) >= recall(before, truth) - 0.002
