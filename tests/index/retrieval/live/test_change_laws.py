"""Laws of answers: an upsert that changes nothing and a compaction change no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.building import compaction
from index.registry import delta_writer
from index.registry.registry import Registry
from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from index.settings import RetrieverSettings
from tests.index.registry.ad_world import (
    ATTRIBUTES,
    COLUMNS,
    World,
    ad,
    first_rows,
    table_of,
    tree_settings,
    write_world,
)

CALLS: list[dict[str, Any]] = [
    {},
    {"k": 7},
    {"where": "in_stock"},
    {"where": "bid < 5", "k": 12},
    {"value_weight": 0.3},
    {"value_weight": 0.3, "where": "in_stock", "k": 9},
    {"exclude": [20, 30]},
    {"max_per": {"shop": 2}},
]
RECORDS: list[dict[str, Any]] = [
    {"history": [10, 20, 30]},
    {"history": [480, 5]},
    {"history": []},
    {},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world") / "world")


@pytest.fixture(scope="module", params=["exact", "tree"])
def bundle(request: pytest.FixtureRequest, world: World) -> Path:
    """Answers with new items and own items blended in."""
    retriever = RetrieverSettings(new_items_share=0.2, own_items_share=0.2)
    settings = tree_settings()
    if request.param == "exact":
        settings = settings.model_copy(update={"engine": "exact", "tree": None})
    return world.bundle_with(f"bundle-{request.param}", settings, retriever)


@pytest.fixture
def registry(bundle: Path, tmp_path: Path) -> Registry:
    opened = Registry(tmp_path / "registry")
    opened.publish(bundle)
    return opened


def answers(registry: Registry) -> list[Candidates]:
    """Those of a retriever that is opened now."""
    retriever = Retriever.open(registry.url)
    return [retriever.retrieve(record, **{"k": 100, **call}) for record in RECORDS for call in CALLS]


def check_same(before: list[Candidates], after: list[Candidates]) -> None:
    for own, other in zip(before, after, strict=True):
        assert own.item_ids.tolist() == other.item_ids.tolist()
        np.testing.assert_allclose(own.scores, other.scores, atol=1e-4)
        assert own.sources.tolist() == other.sources.tolist()
        assert (own.cold_start, own.unknown_history) == (other.cold_start, other.unknown_history)


@pytest.mark.parametrize("columns", [COLUMNS, ("bid",), ATTRIBUTES, ("picture",), ()])
def test_an_upsert_that_changes_nothing_changes_no_answer(
    registry: Registry, world: World, columns: tuple[str, ...]
) -> None:
    before = answers(registry)
    open_before = Retriever.open(registry.url)
    delta_writer.apply(registry.url, table_of(list(first_rows(world).values()), columns))
    check_same(before, answers(registry))
    for record in RECORDS:
        own = open_before.retrieve(record, 100)
        assert own.item_ids.tolist() == answers_to(registry, record)


def answers_to(registry: Registry, record: dict[str, Any]) -> list[int]:
    return list(Retriever.open(registry.url).retrieve(record, 100).item_ids.tolist())


def changed(registry: Registry, seed: int) -> None:
    """New ads, ads with other columns, removed and paused ones, in several entries."""
    delta_writer.apply(registry.url, table_of([ad(item, 1 + seed) for item in (20, 30, 480, 5, 1005)]))
    delta_writer.apply(registry.url, table_of([ad(item, 2 + seed) for item in (40, 50, 15)], ("bid", "brand")))
    changes = ["pause", "remove", "pause", "remove", "resume"]
    delta_writer.apply(registry.url, pa.table({"ad": [60, 70, 1005, 80, 30], "change": changes}))
    delta_writer.apply(registry.url, table_of([ad(80, 0)], ("title",)))


@pytest.mark.parametrize("seed", range(3))
def test_a_compaction_changes_no_answer(registry: Registry, tmp_path: Path, seed: int) -> None:
    changed(registry, seed)
    before = answers(registry)
    compaction.run(registry.url, tmp_path / "compacted")
    check_same(before, answers(registry))
    delta_writer.apply(registry.url, pa.table({"ad": [60, 1005], "change": ["resume", "resume"]}))
    assert {60, 1005} <= set(answers_to(registry, {"history": [10]}))
