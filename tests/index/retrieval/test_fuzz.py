"""Any call ends with an answer of the right version or one clear error: a few thousand, and 100,000 when slow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import TowerlineError
from tests.index import serving_bundles

ITEMS, DIM = 400, 8
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2.5, 1e308, -1e308, float("nan"), float("inf"), 2**63, -(2**70), "", "US", "x" * 300,
    "\ud800", b"US", [], {}, [None], ["US", None], [[]], [1, "a"], (1,), {1}, {"a": 1}, object(), 3 + 4j, range(3),
    np.int64(1000), np.float32(2), np.datetime64("2025-01-01"), np.array([]), np.array([[1]]), np.array(["a"]),
)  # fmt: skip
WORDS = (
    "price", "in_stock", "category", "stock", "advertiser_id", "title", "nothing", "10", "-3.5", "'shoes'", "None",
    "True", "(1, 2)", "('shoes', 'bags')", "<", ">=", "==", "!=", "in", "not in", "is", "and", "or", "not", "(", ")",
    ",", "1e999", "lambda", "price < 10", "in_stock", "category == 'rugs'", "stock in (1, 2, 3)",
)  # fmt: skip
KEYS = (
    "history", "history_time", "history_action", "time", "user_id", "country", "age", "interests", "contry", 3, None,
)  # fmt: skip


@pytest.fixture(scope="module")
def retrievers(tmp_path_factory: pytest.TempPathFactory) -> list[Retriever]:
    root = tmp_path_factory.mktemp("fuzz")
    return [
        Retriever.open(
            serving_bundles.write_bundle(
                root / f"{seed}", items=ITEMS, dim=DIM, seed=seed, leaves=leaves, value_scale=scale, text_ids=seed == 1
            )
        )
        for seed, leaves, scale in ((0, 8, 0.3), (1, None, None))
    ]


class Caller:
    """Draws calls: about half of each part is as it should be."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.messages: list[str] = []

    def one_of(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def maybe(self, sound: Any, share: float = 0.7) -> Any:
        return sound if self.rng.random() < share else self.one_of(ODD)

    def ids(self) -> Any:
        n = int(self.rng.integers(0, 30))
        if self.rng.random() < 0.3:
            return [f"ad{number:06d}" for number in self.rng.integers(0, ITEMS + 50, n)]
        return [1000 + int(number) for number in self.rng.integers(0, 3 * ITEMS, n)]

    def record(self) -> Any:
        record: dict[Any, Any] = {}
        sound = {
            "history": self.ids(),
            "country": self.one_of(("US", "CA", "FR")),
            "age": int(self.rng.integers(1, 99)),
            "interests": ["rugs", "toys"],
            "time": "2025-10-09T08:53:20Z",
        }
        for key, value in sound.items():
            if self.rng.random() < 0.6:
                record[key] = self.maybe(value, 0.9)
        if isinstance(record.get("history"), list) and self.rng.random() < 0.4:
            record["history_time"] = self.maybe(["2001-09-09"] * len(record["history"]), 0.9)
            record["history_action"] = self.maybe(["click"] * len(record["history"]), 0.9)
        if self.rng.random() < 0.1:
            record[self.one_of(KEYS)] = self.one_of(ODD)
        return self.maybe(record, 0.97)

    def rules(self) -> dict[str, Any]:
        rules: dict[str, Any] = {}
        if self.rng.random() < 0.4:
            words = [self.one_of(WORDS) for _ in range(int(self.rng.integers(1, 7)))]
            rules["where"] = self.maybe(self.one_of((" ".join(words), "in_stock", "price < 10")), 0.95)
        if self.rng.random() < 0.3:
            rules["exclude"] = self.maybe(self.ids(), 0.9)
        if self.rng.random() < 0.3:
            rules["max_per"] = self.maybe({self.one_of(("advertiser_id", "category", "no")): self.maybe(2, 0.9)}, 0.9)
        if self.rng.random() < 0.3:
            rules["value_weight"] = self.maybe(float(self.rng.random()), 0.9)
        if self.rng.random() < 0.3:
            rules["diversity"] = self.maybe(float(self.rng.random()), 0.9)
        return rules

    def call(self, retriever: Retriever) -> Candidates | None:
        k = self.maybe(int(self.rng.integers(1, 500)), 0.9)
        rules = self.rules()
        kind = self.rng.random()
        try:
            if kind < 0.6:
                return retriever.retrieve(self.record(), k, **rules)
            if kind < 0.7:
                return retriever.retrieve_by_id(self.maybe(self.one_of(("u0", "u1", "u2", "u9"))), k, **rules)
            if kind < 0.8:
                answers = retriever.retrieve_batch([self.record() for _ in range(3)], k, **rules)
                return answers[int(self.rng.integers(len(answers)))]
            vector = self.rng.normal(size=self.one_of((DIM, DIM, DIM, DIM + 1)))
            space = self.one_of((retriever.space, retriever.space, "space-9"))
            return retriever.retrieve_vector(self.maybe(vector, 0.9), space, k, **rules)
        except TowerlineError as err:
            self.messages.append(str(err))
            return None


def check(found: Candidates, retriever: Retriever) -> None:
    assert found.version == retriever.version
    assert len(found.rows) == len(found.scores) == len(found.item_ids) == len(found.sources) <= found.k
    assert len(np.unique(found.rows)) == len(found.rows)
    assert len(found.rows) == 0 or 0 <= found.rows.min() <= found.rows.max() < ITEMS
    assert np.isfinite(found.scores).all()
    assert len(found) == found.k or found.plan.exhausted


def run(retrievers: list[Retriever], calls: int, seed: int) -> None:
    caller = Caller(seed)
    answers = 0
    for number in range(calls):
        retriever = retrievers[number % len(retrievers)]
        found = caller.call(retriever)
        if found is not None:
            answers += 1
            check(found, retriever)
    assert calls / 4 < answers < calls
    assert all(0 < len(message) < 2000 for message in caller.messages)


def test_a_few_thousand_calls(retrievers: list[Retriever]) -> None:
    run(retrievers, 3000, 0)


@pytest.mark.slow
def test_a_hundred_thousand_calls(retrievers: list[Retriever]) -> None:
    run(retrievers, 100_000, 1)
