"""The summary of a run's artifact, against figures counted by hand on the small marketplace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.schema import DatasetSchema
from pipelines.features import job as features
from pipelines.features.reporting.artifact_summary import summary_of
from pipelines.features.reporting.data_summary import lines
from pipelines.tables.rejects.place import Place
from tests.pipelines.conftest import EVENTS, at


def test_the_summary_of_a_run_by_hand(small: Callable[..., DatasetSchema], tmp_path: Path) -> None:
    """Users 1, 2, 3 have events, 9 a row only; in test (from day 20) are 3 and 2, of whom 3 has no event before.

    Items in test: 20 and 30, both with train events (days 2 and 0), and 40, which the added event of user 1 names.
    """

    def change(raw: dict[str, Any]) -> None:
        raw["validation"] = {"max_reject_rate": 0.5}

    more = [
        {"user": 1, "item": 40, "time": at(23), "action": "click", "price": 1.0},
        {"user": 1, "item": 99, "time": at(23), "action": "click", "price": 1.0},
        {"user": 1, "item": 10, "time": at(23), "action": "returned", "price": 1.0},
    ]
    out = features.run(small(change, events=[*EVENTS, *more]), tmp_path / "features")
    found = summary_of(out)
    assert (found.users, found.items, dict(found.events)) == (4, 4, {"train": 4, "valid": 1, "test": 3})
    assert (found.new_users, found.new_items) == (1, 1)
    assert found.rows == {"events": 10, "items": 4, "users": 3}
    assert {side: unknown.events for side, unknown in found.unknown.items()} == {"user": 1, "item": 1}
    assert found.joined == pytest.approx(7 / 9)
    (reject,) = found.rejects
    assert (reject.table, reject.reason, reject.rows) == ("events", "allowed:action", 1)
    file = str(tmp_path / "events.parquet")
    assert reject.example == Place(file, 9, "action", "returned", "one of 'click', 'purchase'")
    assert "row 9, action = 'returned', expected one of 'click', 'purchase'" in "\n".join(lines(found))


def test_new_users_and_items_are_those_of_a_full_run_after_an_increment(
    small: Callable[..., DatasetSchema], tmp_path: Path
) -> None:
    """The new day brings user 5, and user 3 a late event before the test window: 5 is new then, and 3 is not."""
    old = features.run(small(), tmp_path / "old")
    assert summary_of(old).new_users == 1
    schema = small(
        **{
            "events-1": [
                {"user": 5, "item": 40, "time": at(24), "action": "click", "price": 1.5},
                {"user": 3, "item": 10, "time": at(12), "action": "click", "price": 1.5},
            ]
        }
    )
    upon = features.run(schema, tmp_path / "upon", previous=old)
    full = features.run(schema, tmp_path / "full")
    for out in (upon, full):
        assert (summary_of(out).new_users, summary_of(out).new_items) == (1, 1)
    assert dataclasses.replace(summary_of(upon), drift=[]) == dataclasses.replace(summary_of(full), drift=[])


def test_features_of_an_older_version_have_no_summary(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        summary_of(tmp_path)
