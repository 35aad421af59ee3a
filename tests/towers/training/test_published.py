"""Which towers are published, and why: for any course of training, and in the files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.manifest import read_manifest
from tests.index.stage_artifacts import write_features
from tests.recorded import Recorded
from tests.towers.training.test_warm_start import settings
from towers.training import job as training
from towers.training.published import published
from towers.training.warm_start import WarmStart


@given(st.lists(st.integers(0, 9999).map(lambda n: n / 10_000), min_size=2, max_size=8))
def test_the_start_is_published_if_and_only_if_no_epoch_is_better(recalls: list[float]) -> None:
    """Early stopping keeps the earliest of equals. The reason has both figures that were compared."""
    best = max(range(len(recalls)), key=lambda epoch: (recalls[epoch], -epoch))
    found = published(best, list(enumerate(recalls)))
    assert (found.towers == "start") == all(recall <= recalls[0] for recall in recalls[1:])
    assert f"{recalls[0]:.4f}" in found.why
    assert f"{max(recalls[1:]):.4f}" in found.why
    assert f"{len(recalls) - 1} epoch" in found.why


@pytest.mark.parametrize(
    ("best", "given_to", "towers", "why"),
    [
        (0, {"asked": 0}, "start", "no epoch of training was asked for"),
        (3, {"asked": 3}, "trained", "3 epochs of training were asked for"),
        (1, {"continued": 1}, "trained", "an earlier model was continued for 1 epoch"),
        (5, {}, "trained", "5 epochs without a validation part to choose by"),
        (0, {}, "start", "no epoch was trained"),
    ],
)
def test_where_nothing_was_compared_the_reason_says_so(best: int, given_to: dict, towers: str, why: str) -> None:
    found = published(best, [], **given_to)
    assert (found.towers, found.why) == (towers, why)


def test_a_run_says_in_log_and_files_which_towers_it_publishes(tmp_path: Path) -> None:
    """At a rate of almost nothing no epoch improves; towers that were continued are trained ones."""
    write_features(tmp_path / "features", items=60, users=40, dim=16, seed=0)
    shown = Recorded()
    still = training.run(tmp_path / "features", settings(learning_rate=1e-12), tmp_path / "still", progress=shown)
    facts, record = read_manifest(still).facts, json.loads((still / "training.json").read_text())
    assert facts["best_epoch"] == 0
    assert (facts["towers"], record["towers"]) == ("start", "start")
    assert facts["towers_why"] == record["towers_why"]
    assert f"towers: the start is published: {facts['towers_why']}" in shown.lines
    valid = [epoch["valid"] for epoch in record["epochs"] if epoch["valid"] is not None]
    assert f"{valid[0]:.4f}" in facts["towers_why"]

    warm = training.run(tmp_path / "features", settings(), tmp_path / "warm", warm=WarmStart(still, 1), progress=shown)
    assert read_manifest(warm).facts["towers"] == "trained"
    assert shown.lines[-1].startswith("towers: trained towers are published: ")


@pytest.mark.parametrize(("refit", "learned"), [(True, ["train", "valid"]), (False, ["train"])])
def test_a_run_says_which_parts_of_the_split_it_has_learned_from(
    tmp_path: Path, refit: bool, learned: list[str]
) -> None:
    write_features(tmp_path / "features", items=60, users=40, dim=16, seed=0)
    out = training.run(tmp_path / "features", settings(epochs=1, refit=refit), tmp_path / "model")
    assert read_manifest(out).facts["learned_from"] == learned
