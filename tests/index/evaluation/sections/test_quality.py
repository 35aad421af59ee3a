"""Recall of new and known users and items apart, against a loop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.evaluation.measures.metrics import without
from index.evaluation.ranking import Rankings
from index.evaluation.sections.quality import NEWNESS, measure_quality
from index.evaluation.settings import EvaluationSettings
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets
from towerline.commands.measure.evaluate import recall_lines

ITEMS, K = 12, (2, 5)
SETTINGS = EvaluationSettings(k=K, waterfall_k=5, resamples=100, baselines=())


def sets(users: list[set[int]]) -> ItemSets:
    owners = np.repeat(np.arange(len(users)), [len(own) for own in users])
    return ItemSets.of(owners, np.array([row for own in users for row in sorted(own)], np.int32), len(users))


def mean_recall(ranked: np.ndarray, truth: list[set[int]], k: int) -> float:
    values = [
        len(own & set(line[:k])) / min(k, len(own)) for line, own in zip(ranked.tolist(), truth, strict=True) if own
    ]
    return float(np.mean(values))


subsets = st.sets(st.integers(0, ITEMS - 1), max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(subsets, subsets), min_size=1, max_size=8), st.integers(0, 2**31), st.booleans())
def test_new_and_known_are_told_apart(users: list[tuple[set[int], set[int]]], seed: int, remove_seen: bool) -> None:
    """A side that is empty, or all there is, has no figures."""
    rng = np.random.default_rng(seed)
    truth, seen = [own for own, _ in users], [had for _, had in users]
    ranked = np.array([rng.permutation(ITEMS)[:5] for _ in users], np.int32)
    events = rng.integers(0, 2, ITEMS).astype(float)
    held_out = HeldOut(np.arange(len(users), dtype=np.int32), sets(truth), sets(seen))
    rankings = Rankings(ranked, without(ranked, sets(seen), 5))
    chosen = SETTINGS.model_copy(update={"remove_seen": remove_seen})
    found = measure_quality(rankings, held_out, events, {}, chosen)
    if remove_seen:
        ranked, truth = rankings.novel, [own - had for own, had in zip(truth, seen, strict=True)]
    new_users = [own if not had else set() for own, had in zip(truth, seen, strict=True)]
    known_users = [own if had else set() for own, had in zip(truth, seen, strict=True)]
    new_items = [{row for row in own if not events[row]} for own in truth]
    known_items = [{row for row in own if events[row]} for own in truth]
    parts = dict(zip(NEWNESS, (new_users, known_users, new_items, known_items), strict=True))
    for first, second in (("new users", "known users"), ("new items", "known items")):
        both = any(parts[first]) and any(parts[second])
        for name in (first, second):
            measured = {one.k: one.interval.mean for one in found.measures if one.part == name}
            assert set(measured) == (set(K) if both else set())
            for k, value in measured.items():
                assert value == pytest.approx(mean_recall(ranked, parts[name], k))


def test_new_and_known_come_before_the_means() -> None:
    recall = {"all": {"20": 0.25, "100": 0.5}, "new users": {"20": 0.125}, "known users": {"20": 0.75}}
    report = SimpleNamespace(
        recall=recall,
        baselines={"popularity": SimpleNamespace(recall=recall)},
        counts=SimpleNamespace(
            users_evaluated=92, new_users=64, truth_pairs=700, truth_never_seen_before=81, items=9742
        ),
    )
    lines = recall_lines(report)  # type: ignore[arg-type]
    assert lines[0].split() == ["recall", "new", "users@20", "known", "users@20"]
    assert lines[1].split() == ["towerline", "0.1250", "0.7500"]
    assert lines[3] == "64 of the users are new; 81 of 700 held-out pairs are of new items"
    assert lines[5].split() == ["recall", "all@20", "all@100"]
    # Where nothing is new, there is the table of means alone.
    report.recall = {"all": recall["all"]}
    assert recall_lines(report)[0].split() == ["recall", "all@20", "all@100"]  # type: ignore[arg-type]
