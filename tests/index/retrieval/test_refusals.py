"""A refused call leaves nothing behind, even if its exception is kept for ever."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import TowerlineError
from tests.index import serving_bundles

GOOD = {"history": [1000, 1003], "country": "US", "age": 30, "interests": ["shoes"]}
# One refusal by each part of a call: the reader, each kind of feature, the rules, the count.
REFUSED = [
    ({"history": "x"}, {}),
    ({**GOOD, "age": "old"}, {}),
    ({**GOOD, "country": [1]}, {}),
    ({**GOOD, "interests": 7}, {}),
    ({**GOOD, "interests": [b"\xff"]}, {}),
    (GOOD, {"where": "price <"}),
    (GOOD, {"where": "nothing < 3"}),
    (GOOD, {"max_per": {"title": 0}}),
    (GOOD, {"exclude": [None]}),
    (GOOD, {"value_weight": 1.0}),
    (GOOD, {"k": 0}),
]


def ask(retriever: Retriever, record: dict, rules: dict, way: str) -> None:  # type: ignore[type-arg]
    if way == "retrieve":
        retriever.retrieve(record, **rules)
    elif way == "batch":
        retriever.retrieve_batch([GOOD, record], **rules)
    elif way == "vector":
        retriever.retrieve_vector(retriever.embed(record), retriever.space, **rules)
    else:
        retriever.embed(record)


@pytest.mark.parametrize("way", ["retrieve", "batch", "vector", "embed"])
def test_kept_exceptions_neither_spoil_other_calls_nor_hold_the_version(tmp_path: Path, way: str) -> None:
    bundles = [serving_bundles.write_bundle(tmp_path / f"b{seed}", items=300, seed=seed) for seed in (0, 1)]
    registry = Registry(tmp_path / "registry")
    registry.publish(bundles[0])
    retriever = Retriever.open(registry.url)
    expected = retriever.retrieve(GOOD, 20).item_ids.tolist()
    kept = []
    for record, rules in REFUSED:
        if way == "embed" and rules:
            continue
        with pytest.raises(TowerlineError) as refused:
            ask(retriever, record, rules, way)
        kept.append(refused)
        assert retriever.retrieve(GOOD, 20).item_ids.tolist() == expected
    base = retriever._follower.base
    old = [weakref.ref(part) for part in (retriever._follower, base, base.tower, base.vectors)]
    del base
    registry.publish(bundles[1])
    with retriever:
        watcher = retriever.watch(60.0)
        assert watcher.check()
        watcher.check()
    gc.collect()
    assert [part() for part in old] == [None] * 4
    assert len(kept) in (5, len(REFUSED))
