"""Rules in a call: every plan's answer against a slow reference over all items, and the errors for bad rules."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from index.rules import planner
from index.settings import RetrieverSettings
from pipelines.contracts.errors import SchemaError
from tests import oracles
from tests.index import serving_bundles

ITEMS, DIM = 3000, 16
RECORD = {"history": [1000, 1030, 4000], "country": "CA", "age": 30}


@pytest.fixture(scope="module", params=["exact", "scann"])
def retriever(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    leaves = 20 if request.param == "scann" else None
    path = tmp_path_factory.mktemp(request.param) / "bundle"
    return Retriever.open(serving_bundles.write_bundle(path, leaves=leaves, value_scale=0.3))


@pytest.fixture(scope="module")
def items() -> dict[str, Any]:
    vectors = serving_bundles.clustered(ITEMS, DIM, 0)
    table = serving_bundles.attributes(vectors, 0)
    prices = [price for price in table["price"] if price]
    table["log"] = np.log(np.array([price or min(prices) for price in table["price"]], np.float32))
    return {**table, "vectors": vectors}


Passes = Callable[[dict[str, Any], int], bool]


def reference(
    retriever: Retriever,
    items: dict[str, Any],
    k: int,
    passes: Passes = lambda table, row: True,
    exclude: tuple[int, ...] = (),
    max_per: dict[str, int] | None = None,
    weight: float = 0.0,
) -> list[int]:
    """What the exact ranking gives where it is taken down greedily."""
    scores = items["vectors"] @ retriever.embed(RECORD) + np.float32(weight) * items["log"]

    def may_come(row: int) -> bool:
        return passes(items, row) and 1000 + 3 * row not in exclude

    return oracles.taken_greedily(scores, k, may_come, max_per, items)


def check(found: Candidates, expected: list[int], k: int) -> None:
    assert found.rows.tolist() == expected
    assert found.item_ids.tolist() == [1000 + 3 * row for row in expected]
    assert found.fill == len(expected) / k
    assert found.plan.exhausted or len(expected) == k


def of_adv7(table: dict[str, Any], row: int) -> bool:
    return bool(table["advertiser_id"][row] == "adv7" and table["in_stock"][row])


RULES: list[tuple[str, Passes]] = [
    ("in_stock", lambda table, row: table["in_stock"][row]),
    ("category == 'shoes'", lambda table, row: table["category"][row] == "shoes"),
    ("price < 1", lambda table, row: table["price"][row] is not None and table["price"][row] < 1),
    ("stock < 3", lambda table, row: table["stock"][row] < 3),
    ("advertiser_id == 'adv7' and in_stock", of_adv7),
]


@pytest.mark.parametrize(("where", "passes"), RULES, ids=[where for where, _ in RULES])
@pytest.mark.parametrize("k", [1, 50])
def test_a_filtered_answer_is_the_exact_one(
    retriever: Retriever, items: dict[str, Any], where: str, passes: Passes, k: int
) -> None:
    for _ in range(2):
        check(retriever.retrieve(RECORD, k, where=where), reference(retriever, items, k, passes), k)


@pytest.mark.parametrize("gathered_mib", [64.0, 0.0])
def test_every_plan_finds_what_exact_search_finds(
    tmp_path: Path, items: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gathered_mib: float
) -> None:
    monkeypatch.setattr(planner, "_EXACT_NUMBERS", 0)
    monkeypatch.setattr(planner, "_LEAF_ROWS", 300)
    monkeypatch.setattr(planner, "_LEAF_ROWS_PER_NEIGHBOR", 20)
    path = serving_bundles.write_bundle(tmp_path / "bundle", leaves=20, value_scale=0.3)
    retriever = Retriever.open(path, settings=RetrieverSettings(rule_vectors_mib=gathered_mib))
    methods = set()
    for where, passes in RULES:
        for weight in (0.0, 0.2):
            expected = reference(retriever, items, 20, passes, weight=weight)
            found = retriever.retrieve(RECORD, 20, where=where, value_weight=weight)
            assert len(found) == len(expected)
            assert all(passes(items, row) for row in found.rows.tolist())
            assert len(np.intersect1d(found.rows, expected)) >= 0.95 * len(expected)
            methods.add(found.plan.method)
    assert {"fetch", "leaves", "exact"} >= methods >= {"fetch", "leaves"}


def test_nothing_passes(retriever: Retriever) -> None:
    found = retriever.retrieve(RECORD, 10, where="price < 0 and in_stock", explain=True)
    assert len(found) == 0
    assert found.fill == 0.0
    assert found.plan.method == "empty"
    assert (found.plan.eligible, found.plan.exhausted) == (0, True)
    assert found.explanation is not None
    assert found.explanation.of(1000).removed_by == "where price < 0 and in_stock"
    assert len(retriever.retrieve({}, 10, where="price < 0")) == 0


def test_excluded_items_do_not_come_back(retriever: Retriever, items: dict[str, Any]) -> None:
    best = tuple(retriever.retrieve(RECORD, 30).item_ids.tolist())
    check(retriever.retrieve(RECORD, 20, exclude=best), reference(retriever, items, 20, exclude=best), 20)
    for exclude in (set(best), np.array(best), [*best, 5, -1]):
        assert retriever.retrieve(RECORD, 20, exclude=exclude).rows.tolist() == reference(
            retriever, items, 20, exclude=best
        )
    assert retriever.retrieve(RECORD, 20, exclude=("-12",)).rows.tolist() == reference(retriever, items, 20)
    with pytest.raises(SchemaError, match=r"exclude\[0\]: expected an integer"):
        retriever.retrieve(RECORD, 20, exclude=("no such id",))


def test_a_million_excluded_ids(retriever: Retriever, items: dict[str, Any]) -> None:
    kept = (1000 + 3 * 17, 1000 + 3 * 2500)
    exclude = [number for number in range(1_000_000) if number not in kept]
    found = retriever.retrieve(RECORD, 20, exclude=exclude)
    assert set(found.item_ids.tolist()) == set(kept)
    assert found.plan.exhausted
    assert found.plan.eligible == 2


@pytest.mark.parametrize(
    "max_per", [{"advertiser_id": 1}, {"advertiser_id": 2}, {"category": 7}, {"advertiser_id": 3, "category": 9}]
)
@pytest.mark.parametrize("k", [10, 200])
def test_crowding_is_never_violated_and_exact(
    retriever: Retriever, items: dict[str, Any], max_per: dict[str, int], k: int
) -> None:
    expected = reference(retriever, items, k, max_per=max_per)
    found = retriever.retrieve(RECORD, k, max_per=max_per)
    for name, most in max_per.items():
        assert max(Counter(items[name][row] for row in found.rows.tolist()).values()) <= most
    assert len(found) == len(expected)
    assert len(np.intersect1d(found.rows, expected)) >= 0.97 * len(expected)


def test_all_rules_together(retriever: Retriever, items: dict[str, Any]) -> None:
    where, passes = RULES[0]
    best = tuple(retriever.retrieve(RECORD, 10, where=where).item_ids.tolist())
    rules = {"exclude": best, "max_per": {"advertiser_id": 2}}
    expected = reference(retriever, items, 15, passes, **rules, weight=0.1)
    found = retriever.retrieve(RECORD, 15, where=where, value_weight=0.1, **rules)
    assert found.rows.tolist() == expected


@pytest.mark.parametrize("weight", [0.05, 0.2, 1.0, 20.0])
def test_value_weight_ranks_by_utility(retriever: Retriever, items: dict[str, Any], weight: float) -> None:
    found = retriever.retrieve(RECORD, 50, value_weight=weight)
    expected = reference(retriever, items, 50, weight=weight)
    assert len(np.intersect1d(found.rows, expected)) >= 48
    scores = items["vectors"] @ retriever.embed(RECORD) + np.float32(weight) * items["log"]
    np.testing.assert_allclose(found.scores, scores[found.rows], rtol=1e-4, atol=1e-4)
    assert (np.diff(found.scores) <= 0).all()


def test_a_cold_user_is_answered_under_the_rules(retriever: Retriever, items: dict[str, Any]) -> None:
    found = retriever.retrieve({}, 12, where="in_stock", max_per={"advertiser_id": 2}, exclude=[1000, 1003])
    assert found.cold_start == "popularity"
    assert all(items["in_stock"][row] for row in found.rows.tolist())
    assert max(Counter(items["advertiser_id"][row] for row in found.rows.tolist()).values()) == 2
    assert not {0, 1} & set(found.rows.tolist())
    assert (np.diff(found.scores) <= 0).all()
    dear = retriever.retrieve({}, 12, value_weight=100.0)
    assert dear.rows[0] == int(np.argmax(items["log"]))


def mean_similarity(vectors: np.ndarray, rows: np.ndarray) -> float:
    similarity = vectors[rows] @ vectors[rows].T
    return float((similarity.sum() - len(rows)) / (len(rows) * (len(rows) - 1)))


def test_diversity_is_maximal_marginal_relevance(retriever: Retriever, items: dict[str, Any]) -> None:
    """Each step chooses among the 400 best that are left."""
    vectors = items["vectors"].astype(np.float64)
    pool = retriever.retrieve(RECORD, 420, where="price is None or price > 0")
    chosen = oracles.marginal_relevance(pool.scores, vectors[pool.rows], 0.6, 20, pool=400)
    found = retriever.retrieve(RECORD, 20, diversity=0.6, where="price is None or price > 0")
    assert found.rows.tolist() == pool.rows[chosen].tolist()
    plain = retriever.retrieve(RECORD, 20)
    assert mean_similarity(vectors, found.rows) < mean_similarity(vectors, plain.rows)


def test_explanations(retriever: Retriever, items: dict[str, Any]) -> None:
    rules: dict[str, Any] = {"where": "in_stock", "max_per": {"advertiser_id": 1}, "exclude": [1000]}
    found = retriever.retrieve(RECORD, 10, explain=True, **rules)
    explanation = found.explanation
    assert explanation is not None
    scores = items["vectors"] @ retriever.embed(RECORD)
    first = explanation.of(int(found.item_ids[0]))
    assert (first.place, first.removed_by) == (1, None)
    assert first.score == pytest.approx(float(scores[found.rows[0]]), abs=1e-5)
    assert first.rank == int((scores > scores[found.rows[0]]).sum()) + 1
    assert (first.leaf is None) == (retriever._follower.base.planner.leaves is None)
    assert explanation.of(1000).removed_by == "exclude"
    gone = next(row for row in range(1, ITEMS) if not items["in_stock"][row])
    assert explanation.of(1000 + 3 * gone).removed_by == "where in_stock"
    assert explanation.of(1000 + 3 * gone).eligible_rank is None
    order = [row for row in np.argsort(-scores, kind="stable") if items["in_stock"][row] and row != 0]
    advertisers = {items["advertiser_id"][row] for row in found.rows.tolist()}
    crowded = next(row for row in order if row not in found.rows and items["advertiser_id"][row] in advertisers)
    assert explanation.of(1000 + 3 * int(crowded)).removed_by == "max_per advertiser_id=1"
    assert explanation.of(1000 + 3 * int(order[-1])).removed_by == "rank"
    with pytest.raises(SchemaError, match="has no item 7"):
        explanation.of(7)
    assert retriever.retrieve(RECORD, 10).explanation is None


def test_own_items_take_their_share_and_are_labelled(tmp_path: Path) -> None:
    settings = RetrieverSettings(own_items_share=0.3)
    retriever = Retriever.open(serving_bundles.write_bundle(tmp_path / "bundle", retriever=settings))
    history = [1000, 1003, 1003, 1003, 1006, 1006, 4000]
    found = retriever.retrieve({"history": history}, 10)
    own = found.item_ids[found.sources == "own items"].tolist()
    assert own == [1003, 1006, 4000]
    assert len(found) == len(set(found.item_ids.tolist())) == 10
    assert found.sources.tolist().count("towers") == 7
    plain = Retriever.open(tmp_path / "bundle", settings=RetrieverSettings()).retrieve({"history": history}, 10)
    rest = found.rows[found.sources == "towers"].tolist()
    assert rest == [row for row in plain.rows.tolist() if row not in (1, 2, 1000)][:7]
    ruled = retriever.retrieve({"history": history}, 10, exclude=[1003], max_per={"advertiser_id": 1})
    assert 1003 not in ruled.item_ids
    assert len(ruled) == 10
    assert len(retriever.retrieve_batch([{"history": history}], 10)[0]) == 10


@pytest.mark.parametrize("leaves", [None, 20])
def test_new_items_have_places_of_their_own_and_the_rules_hold_for_them(
    tmp_path: Path, items: dict[str, Any], leaves: int | None
) -> None:
    """The best of those without an event in train, where the search alone would bring none."""
    settings = RetrieverSettings(own_items_share=0.3, new_items_share=0.2)
    bundle = serving_bundles.write_bundle(tmp_path / "bundle", leaves=leaves, retriever=settings, new=600)
    retriever, towers = Retriever.open(bundle), Retriever.open(bundle, settings=RetrieverSettings())
    record = {"history": [1000, 1003, 1003, 1003, 1006, 1006, 4000], "country": "CA"}
    vector = retriever.embed(record)
    order = np.lexsort((np.arange(ITEMS), -(items["vectors"] @ vector))).tolist()

    def best(count: int, passes: Callable[[int], bool] = lambda row: True) -> list[int]:
        return [row for row in order if row >= ITEMS - 600 and passes(row)][:count]

    found = retriever.retrieve(record, 10)
    named = {source: found.rows[found.sources == source].tolist() for source in ("own items", "new items", "towers")}
    assert named["own items"] == [1, 2, 1000]
    assert named["new items"] == [row for row in best(2) if row in named["new items"]]
    assert set(best(2)) <= set(found.rows.tolist())
    assert named["towers"] == [row for row in towers.retrieve(record, 20).rows.tolist() if row in named["towers"]]
    np.testing.assert_allclose(found.scores, items["vectors"][found.rows] @ vector, atol=1e-5)
    assert len(found) == len(set(found.rows.tolist())) == 10

    def in_stock(row: int) -> bool:
        return bool(items["in_stock"][row])

    ruled = retriever.retrieve(record, 20, where="in_stock", max_per={"advertiser_id": 3})
    assert all(in_stock(row) for row in ruled.rows.tolist())
    assert max(Counter(items["advertiser_id"][row] for row in ruled.rows.tolist()).values()) <= 3
    assert "new items" in ruled.sources
    of_rule = retriever.retrieve(record, 20, where="in_stock").rows.tolist()
    assert all(in_stock(row) for row in of_rule)
    assert set(best(4, in_stock)) <= set(of_rule)
    few, many = ([1000 + 3 * row for row in best(count)] for count in (5, 590))
    for gone in (few, [*many, *range(1000, 1000 + 3 * 1000, 3)]):
        left = best(4, lambda row, gone=gone: 1000 + 3 * row not in gone and in_stock(row))  # type: ignore[misc]
        answer = retriever.retrieve(record, 20, where="in_stock", exclude=gone)
        assert set(left) <= set(answer.rows.tolist())
        assert not set(gone) & set(answer.item_ids.tolist())
    assert retriever.retrieve_batch([record], 10)[0].rows.tolist() == found.rows.tolist()
    by_vector = retriever.retrieve_vector(vector, retriever.space, 10)
    assert set(best(2)) <= set(by_vector.rows.tolist())
    explanation = retriever.retrieve(record, 10, explain=True).explanation
    assert explanation is not None
    lost = next(row for row in order[:10] if row not in found.rows)
    assert explanation.of(1000 + 3 * lost).removed_by == "blending"
    # What is kept for new items cannot be asked for as a rule.
    with pytest.raises(SchemaError, match="where"):
        retriever.retrieve(record, 10, where="new items")


def test_without_new_items_or_with_new_items_alone_an_answer_is_that_of_the_towers(tmp_path: Path) -> None:
    for new in (0, ITEMS):
        bundle = serving_bundles.write_bundle(
            tmp_path / f"{new}", retriever=RetrieverSettings(new_items_share=0.4), new=new
        )
        plain = Retriever.open(bundle, settings=RetrieverSettings()).retrieve(RECORD, 10)
        assert Retriever.open(bundle).retrieve(RECORD, 10).rows.tolist() == plain.rows.tolist()


def test_shares_are_of_one_answer() -> None:
    with pytest.raises(ValueError, match=r"of 1 or less together, got 0\.7 and 0\.5"):
        RetrieverSettings(own_items_share=0.7, new_items_share=0.5)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"where": "prise < 3"}, "unknown attribute 'prise'"),
        ({"where": 3}, "where: expected text"),
        ({"exclude": "1000"}, "exclude: expected a list of item ids, got '1000'"),
        ({"exclude": 1000}, "exclude: expected a list"),
        ({"exclude": [[1]]}, r"exclude\[0\]: expected one id"),
        ({"exclude": None}, "exclude: expected"),
        ({"max_per": 2}, "max_per: expected a mapping"),
        ({"max_per": {"advertiser_id": 0}}, "'advertiser_id': expected a whole number of 1 or more, got 0"),
        ({"max_per": {"advertiser_id": 1.5}}, "got 1.5"),
        ({"max_per": {"brand": 1}}, "unknown attribute 'brand'"),
        ({"max_per": {3: 1}}, "expected an attribute's name, got 3"),
        ({"value_weight": -0.1}, "value_weight: expected a number from 0 to 1e"),
        ({"value_weight": float("nan")}, "got nan"),
        ({"value_weight": "high"}, "got 'high'"),
        ({"diversity": 1.5}, "diversity: expected a number from 0 to 1, got 1.5"),
        ({"diversity": None}, "got None"),
    ],
)
def test_a_bad_rule_is_refused(retriever: Retriever, rules: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        retriever.retrieve(RECORD, 10, **rules)
    with pytest.raises(SchemaError, match=message):
        retriever.retrieve_vector(np.ones(DIM), retriever.space, 10, **rules)
    with pytest.raises(SchemaError, match=message):
        retriever.retrieve_batch([RECORD], 10, **rules)


def test_a_rule_that_does_not_exist_is_refused(retriever: Retriever) -> None:
    with pytest.raises(SchemaError, match=r"retrieve_vector: .*unexpected keyword argument 'were'"):
        retriever.retrieve_vector(np.ones(DIM), retriever.space, 10, were="in_stock")


def test_without_a_value_a_weight_is_refused(tmp_path: Path) -> None:
    plain = Retriever.open(serving_bundles.write_bundle(tmp_path / "bundle", items=100))
    with pytest.raises(SchemaError, match=r"built without a value.*\[index\] value"):
        plain.retrieve(RECORD, 10, value_weight=0.1)


def test_many_threads_get_the_answers_of_one(retriever: Retriever) -> None:
    records = [{"history": [1000 + 3 * number, 4000]} for number in range(40)]
    rules = [{}, {"where": "in_stock"}, {"max_per": {"advertiser_id": 2}}, {"value_weight": 0.1}]
    alone = [retriever.retrieve(record, 20, **rule).rows.tolist() for record in records for rule in rules]
    wrong: list[Any] = []

    def ask() -> None:
        for _ in range(3):
            again = [retriever.retrieve(record, 20, **rule).rows.tolist() for record in records for rule in rules]
            if again != alone:
                wrong.append(again)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_metrics_count_calls(tmp_path: Path) -> None:
    retriever = Retriever.open(serving_bundles.write_bundle(tmp_path / "bundle", items=100))
    value = retriever.metrics.registry.get_sample_value
    retriever.retrieve(RECORD, 10)
    retriever.retrieve({}, 110)
    retriever.retrieve(RECORD, 10, where="price < 0")
    with pytest.raises(SchemaError):
        retriever.retrieve(RECORD, 0)
    assert value("towerline_retrieve_seconds_count", {"plan": "search"}) == 1
    assert value("towerline_retrieve_seconds_count", {"plan": "empty"}) == 1
    assert value("towerline_retrieve_short_total") == 2
    assert value("towerline_retrieve_missing_total") == 20
    assert value("towerline_retrieve_cold_total", {"kind": "popularity"}) == 1
    assert value("towerline_retrieve_errors_total") == 1
    assert value("towerline_version_info", {"version": retriever.version}) == 1
    assert retriever.age_seconds >= 0


def test_describe_gives_the_catalogues_lines(retriever: Retriever, items: dict[str, Any]) -> None:
    found = retriever.retrieve(RECORD, 5)
    table = retriever.describe(found)
    assert table["item_id"].to_pylist() == found.item_ids.tolist()
    assert table["title"].to_pylist() == [items["title"][row] for row in found.rows.tolist()]
