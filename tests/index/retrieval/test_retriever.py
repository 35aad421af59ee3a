"""The retriever: answers equal a slow reference, bad input ends with one clear error, cold users get an answer."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError, SchemaError
from tests.index import serving_bundles

DAY_US = 86_400_000_000
NOW_US = 1_760_000_000_000_000
NOW = datetime.datetime.fromtimestamp(NOW_US // 1_000_000, datetime.UTC)
ITEMS, DIM = 3000, 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving_bundles.write_bundle(tmp_path_factory.mktemp("retriever") / "bundle")


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Retriever:
    return Retriever.open(bundle, clock=lambda: NOW_US / 1e6)


def reference_vector(vectors: np.ndarray, record: dict[str, Any]) -> np.ndarray:
    """The test tower in NumPy, from the record itself."""
    country_rows, interest_rows, age_rows = serving_bundles.user_tables(DIM)
    history = [(item - 1000) // 3 for item in record.get("history", [])]
    times = [time.timestamp() * 1e6 for time in record.get("history_time", [NOW] * len(history))]
    actions = record.get("history_action", ["click"] * len(history))
    events = list(zip(history, times, actions, strict=True))[-serving_bundles.HISTORY :]
    weights = np.array([np.exp(-(NOW_US - time) / DAY_US / 30) * (1 + (act == "purchase")) for _, time, act in events])
    pooled = np.zeros(DIM)
    if events:
        pooled = weights @ vectors[[row for row, _, _ in events]] / (weights.sum() + 1e-6)
    country = record.get("country")
    code = 0 if country is None else {"US": 2, "CA": 3, "DE": 4}.get(country, 1)
    age = record.get("age")
    numbers = np.array([0.0, 0.0]) if age is None else np.array([(age - 40) / 12, 1.0])
    interests = [2 + serving_bundles.CATEGORIES.index(word) for word in record.get("interests", [])][:4]
    return pooled + country_rows[code] + numbers @ age_rows + interest_rows[interests].sum(axis=0)


RECORD = {
    "history": [1000, 1030, 4000, 1600],
    "history_time": [NOW - datetime.timedelta(days=days) for days in (40, 10, 3, 0)],
    "history_action": ["click", "purchase", "click", "purchase"],
    "country": "CA",
    "age": 52,
    "interests": ["rugs", "toys"],
}


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        {"history": [1000]},
        {"history": list(range(1000, 1000 + 3 * 30, 3)), "country": "XX"},
        {"country": "DE", "age": 20},
        {"history": np.array([1000, 1003]), "interests": []},
        {"history": (1000, 1003), "age": None},
    ],
)
def test_an_answer_is_the_towers_exact_best(retriever: Retriever, bundle: Path, record: dict[str, Any]) -> None:
    vectors = np.load(bundle / "vectors.npy")
    expected = reference_vector(vectors, record)
    np.testing.assert_allclose(retriever.embed(record), expected, atol=1e-5)
    scores = vectors @ expected
    best = np.argsort(-scores, kind="stable")[:20]
    found = retriever.retrieve(record, 20)
    assert found.rows.tolist() == best.tolist()
    np.testing.assert_allclose(found.scores, scores[best], atol=1e-5)
    assert found.item_ids.tolist() == [1000 + 3 * row for row in best]
    assert found.fill == 1.0
    assert set(found.sources.tolist()) == {"towers"}


def test_one_call_leaves_nothing_for_the_next(retriever: Retriever) -> None:
    alone = retriever.embed({"country": "US"})
    retriever.embed(RECORD)
    np.testing.assert_array_equal(retriever.embed({"country": "US"}), alone)


def test_unknown_history_items_are_ignored_and_counted(retriever: Retriever) -> None:
    clean = retriever.retrieve({"history": [1000, 1003]}, 10)
    dirty = retriever.retrieve({"history": [7, 1000, 10**15, 1001, 1003, -(2**63)]}, 10)
    assert dirty.rows.tolist() == clean.rows.tolist()
    assert (clean.unknown_history, dirty.unknown_history) == (0, 4)
    assert retriever.retrieve({"history": ["1000", "7", "1003"]}, 10).rows.tolist() == clean.rows.tolist()


def test_unknown_history_items_take_no_place_of_known_ones(retriever: Retriever) -> None:
    known = [1000 + 3 * item for item in range(serving_bundles.HISTORY)]
    expected = retriever.embed({"history": known})
    np.testing.assert_array_equal(retriever.embed({"history": [*known, 1, 2, 4]}), expected)


def test_a_cold_user_is_answered_by_popularity_and_marked_as_cold(retriever: Retriever, bundle: Path) -> None:
    frequency = np.random.default_rng(2).zipf(1.5, ITEMS).clip(max=5000)
    found = retriever.retrieve({}, 50)
    assert found.cold_start == "popularity"
    assert found.plan.method == "popularity"
    assert found.rows.tolist() == np.lexsort((np.arange(ITEMS), -frequency))[:50].tolist()
    assert set(found.sources.tolist()) == {"popularity"}
    assert retriever.retrieve({"history": [5], "country": "XX"}).cold_start == "popularity"
    assert retriever.retrieve({"country": "US"}).cold_start == "profile"
    assert retriever.retrieve({"history": [1000]}).cold_start is None


def test_users_of_the_bundle_are_retrieved_by_id(retriever: Retriever) -> None:
    history = [1000, 1003, 1006, 1009, 1012]
    expected = retriever.retrieve({"history": history, "country": "US", "age": 31}, 10)
    assert retriever.retrieve_by_id("u0", 10).rows.tolist() == expected.rows.tolist()
    assert retriever.retrieve_by_id("u1", 10).cold_start == "profile"
    assert retriever.retrieve_by_id("u2", 10).cold_start == "popularity"
    assert retriever.retrieve_by_id("nobody", 10).cold_start == "popularity"
    known = [retriever.retrieve_by_id(user_id, 10).known_user for user_id in ("u0", "u2", "nobody", 7)]
    assert known == [True, True, False, False]
    assert expected.known_user is None
    with pytest.raises(SchemaError, match="user_id: expected an id of type string, got None"):
        retriever.retrieve_by_id(None)


def test_without_users_in_the_bundle_an_id_is_refused(tmp_path: Path) -> None:
    path = serving_bundles.write_bundle(tmp_path / "bundle", items=50, users=False)
    with pytest.raises(ArtifactError, match=r"built without users.*include_users = true"):
        Retriever.open(path).retrieve_by_id("u0")


def test_a_batch_equals_single_calls(retriever: Retriever) -> None:
    records = [RECORD, {}, {"history": [1000, 8]}, {"country": "US"}]
    batch = retriever.retrieve_batch(records, 15)
    for record, found in zip(records, batch, strict=True):
        single = retriever.retrieve(record, 15)
        assert found.rows.tolist() == single.rows.tolist()
        np.testing.assert_allclose(found.scores, single.scores, atol=1e-5)
        assert (found.cold_start, found.unknown_history) == (single.cold_start, single.unknown_history)
    assert retriever.retrieve_batch([], 15) == []
    with pytest.raises(SchemaError, match=r"records\[1\]: feature 'age'"):
        retriever.retrieve_batch([{}, {"age": "old"}])


def test_a_long_batch_equals_its_parts(retriever: Retriever) -> None:
    records = [{"history": [1000 + 3 * number]} for number in range(1100)]
    batch = retriever.retrieve_batch(records, 5)
    assert [found.rows.tolist() for found in batch[::50]] == [
        retriever.retrieve(record, 5).rows.tolist() for record in records[::50]
    ]
    records[777] = {"age": "old"}
    with pytest.raises(SchemaError, match=r"records\[777\]: feature 'age'"):
        retriever.retrieve_batch(records)


def test_a_vector_of_another_space_is_refused_by_name(retriever: Retriever) -> None:
    vector = retriever.embed(RECORD)
    expected = retriever.retrieve(RECORD, 10).rows.tolist()
    assert retriever.retrieve_vector(vector, "space-0-16", 10).rows.tolist() == expected
    with pytest.raises(SchemaError, match=r"expected one of space 'space-0-16' .* got one of 'space-1-16'"):
        retriever.retrieve_vector(vector, "space-1-16", 10)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.full(DIM, np.nan), "16 that are NaN"),
        (np.ones(DIM + 1), r"shape \(16,\), got \(17,\)"),
        ("abc", "expected numbers, got 'abc'"),
        ([[1.0] * DIM], r"got \(1, 16\)"),
    ],
)
def test_a_bad_vector_is_refused(retriever: Retriever, vector: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        retriever.retrieve_vector(vector, "space-0-16")


@pytest.mark.parametrize("k", [0, -1, 2.5, "10", None, True])
def test_a_bad_k_is_refused(retriever: Retriever, k: Any) -> None:
    with pytest.raises(SchemaError, match="k: expected"):
        retriever.retrieve(RECORD, k)
    with pytest.raises(SchemaError, match="k: expected"):
        retriever.retrieve({}, k)


def test_k_above_the_corpus_gives_the_corpus(retriever: Retriever) -> None:
    found = retriever.retrieve(RECORD, ITEMS + 10)
    assert len(found) == ITEMS
    assert found.plan.exhausted
    assert found.fill == pytest.approx(3000 / 3010)
    assert len(retriever.retrieve({}, ITEMS + 10)) == ITEMS


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "record: expected a mapping"),
        ([1], "record: expected a mapping"),
        ({"contry": "US"}, "unknown key 'contry'; did you mean 'country'"),
        ({"history": 1000}, "history: expected a list"),
        ({"history": [[1000]]}, r"history\[0\]: expected one id, .*flat list"),
        ({"history": [1000, "a"]}, r"history\[1\]: expected"),
        ({"history": [1000, {}]}, r"history\[1\]: expected"),
        ({"history": [1000], "history_time": []}, r"history_time: expected a list as long as the history \(1\), got 0"),
        ({"history": [1000], "history_time": ["soon"]}, r"history_time\[0\]"),
        ({"history": [1000], "history_action": ["steal"]}, "expected one of click, purchase .* got 'steal'"),
        ({"time": "later"}, "time: "),
        ({"country": ["US"]}, "feature 'country'"),
        ({"age": "old"}, "feature 'age': expected a finite number, got 'old'"),
        ({"interests": "rugs"}, "feature 'interests'"),
    ],
)
def test_a_bad_record_is_refused(retriever: Retriever, record: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        retriever.retrieve(record)


def test_text_ids(tmp_path: Path) -> None:
    path = serving_bundles.write_bundle(tmp_path / "bundle", items=200, text_ids=True)
    retriever = Retriever.open(path)
    found = retriever.retrieve({"history": ["ad000001", "ad000007", "no"]}, 5)
    assert found.unknown_history == 1
    assert found.item_ids.tolist() == [f"ad{row:06d}" for row in found.rows]
    assert retriever.retrieve({"history": [1, 2]}, 5).unknown_history == 2


def test_a_registry_is_opened_at_its_current_or_a_named_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    names = [
        registry.publish(serving_bundles.write_bundle(tmp_path / f"b{seed}", items=100, seed=seed)) for seed in (0, 1)
    ]
    assert Retriever.open(tmp_path / "registry").version == names[1]
    assert Retriever.open(tmp_path / "registry").space == "space-1-16"
    assert Retriever.open(tmp_path / "registry", names[0]).version == names[0]
    with pytest.raises(ArtifactError, match="expected version 'gone'"):
        Retriever.open(tmp_path / "registry", "gone")
    with pytest.raises(ArtifactError, match="a bundle, not a registry"):
        Retriever.open(tmp_path / "b0", "gone")
    with pytest.raises(ArtifactError, match="CURRENT: missing"):
        Retriever.open(tmp_path / "nothing")


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    path = serving_bundles.write_bundle(tmp_path / "bundle", items=100)
    (path / "query_tower.tflite").write_bytes(b"x" * (path / "query_tower.tflite").stat().st_size)
    with pytest.raises(ArtifactError, match=r"query_tower.tflite: its checksum"):
        Retriever.open(path)
    with pytest.raises(ArtifactError, match="not a LiteRT model"):
        Retriever.open(path, verify=False)


SERVE = """
import sys
FORBIDDEN = ("tensorflow", "apache_beam", "pandas", "scipy", "tf_keras", "tensorflow_recommenders", "towers")
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is forbidden in the retriever")
sys.meta_path.insert(0, Forbid())
from towerline import Retriever
found = Retriever.open(sys.argv[1]).retrieve({"history": [1000, 1003]}, 7)
print(found.item_ids.tolist())
"""


def test_the_retriever_needs_neither_tensorflow_nor_beam(tmp_path: Path, bundle: Path) -> None:
    path = serving_bundles.write_bundle(tmp_path / "bundle", items=500, leaves=10)
    done = subprocess.run([sys.executable, "-c", SERVE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(eval(done.stdout)) == 7


def test_importing_the_package_does_no_work() -> None:
    code = "import sys, towerline; assert not {'numpy', 'pyarrow', 'index.retrieval.retriever'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
