"""Drift against the previous run, by hand-made figures, and exact duplicates."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import DriftLimits
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers, Vocabulary
from pipelines.features import job as features
from pipelines.features.reporting.drift import Drift, Profile, drifts
from pipelines.sequences.reader import Sequences
from tests.pipelines.conftest import EVENTS, ITEMS, USERS, at, raw_schema, schema_of, write_rows


def profile(
    *,
    nulls: int = 0,
    colors: tuple[str, ...] = ("red", "blue"),
    price: float = 4.0,
    days: dict[int, int] | None = None,
) -> Profile:
    frequencies = np.arange(len(colors), 0, -1)
    vocabulary = Vocabulary(
        user={},
        item={
            "color": FittedCodes(pa.array(colors), frequencies),
            "price": FittedNumbers("standard", center=price, spread=2.0),
            "weight": FittedNumbers("quantile", quantiles=np.linspace(0, price, 5)),
        },
        item_ids=pa.array([1, 2]),
        item_frequency=np.array([1, 1]),
    )
    return Profile({"events": {"rows": 20, "columns": {"value": nulls}}}, days or {100: 10, 101: 30}, vocabulary)


LIMITS = DriftLimits(null_rate=0.05, new_value_share=0.2, mean=0.5, daily_volume=0.5)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({}, []),
        ({"nulls": 1}, []),  # A twentieth is the limit itself.
        ({"nulls": 3}, [Drift("null_rate", "events.value", 0.0, 0.15, 0.05)]),
        # Frequencies 3, 2, 1: green has a sixth, gold and grey 2 + 1 of 6 together.
        ({"colors": ("red", "blue", "green")}, []),
        ({"colors": ("red", "gold", "grey")}, [Drift("new_value_share", "item.color", 0.0, 0.5, 0.2)]),
        # The mean moves by 0.9 of 2; the median of (0, .., 4.9) is 2.45, among quantiles (0, 1, 2, 3, 4) at 0.225.
        ({"price": 4.9}, []),
        # By 1.2 of 2; the median 2.6 is at 0.3.
        ({"price": 5.2}, [Drift("mean", "item.price", 4.0, 5.2, 0.5)]),
        # The median 3.2 is at 0.6.
        ({"price": 6.4}, [Drift("mean", "item.price", 4.0, 6.4, 0.5), Drift("mean", "item.weight", 2.0, 3.2, 0.5)]),
        # The mean of 10 and 30 is 20; only new days are looked at.
        ({"days": {101: 500, 102: 10, 103: 31}}, [Drift("daily_volume", "1970-04-14", 20.0, 31, 0.5)]),
        # The 13th has no event at all. Days after the last one are not in the data yet.
        ({"days": {103: 20}}, [Drift("daily_volume", "1970-04-13", 20.0, 0, 0.5)]),
        # Days without an event before the new ones were there before: 20 is the mean of 10 and 30.
        ({"days": {90: 1, 101: 30, 102: 20}}, []),
    ],
)
def test_what_goes_beyond_its_limit_is_drift(now: dict[str, Any], expected: list[Drift]) -> None:
    assert list(drifts(profile(), profile(**now), LIMITS)) == expected


def test_each_day_without_an_event_is_a_day_of_no_events() -> None:
    found = list(drifts(profile(), profile(days={102: 20, 105: 15, 107: 20}), LIMITS))
    assert [(drift.column, drift.now) for drift in found] == [
        ("1970-04-14", 0),
        ("1970-04-15", 0),
        ("1970-04-17", 0),
    ]
    assert str(found[0]) == "daily_volume of 1970-04-14: 20 before, 0 now, -100% (limit 0.5)"


def test_a_gap_of_more_than_four_weeks_is_one_finding() -> None:
    """One event with a wrong year must not become thousands of warnings."""
    assert [drift.column for drift in drifts(profile(), profile(days={131: 20}), LIMITS)] == [
        "1970-04-13/1970-05-11"  # Days 102 to 130, 29 of them.
    ]
    assert len(list(drifts(profile(), profile(days={130: 20}), LIMITS))) == 28


def test_a_day_without_events_is_within_a_limit_of_a_hundred_per_cent() -> None:
    limits = LIMITS.model_copy(update={"daily_volume": 1.0})
    assert list(drifts(profile(), profile(days={104: 20}), limits)) == []


def test_a_null_rate_that_falls_is_drift_too() -> None:
    """Three of 20 events had no value, now every one has: a column that is suddenly filled has changed its meaning."""
    found = list(drifts(profile(nulls=3), profile(), LIMITS))
    assert found == [Drift("null_rate", "events.value", 0.15, 0.0, 0.05)]


def two_days(folder: Path, drift: str) -> Path:
    """The second day brings a week's events at once, and an items table without colours."""
    raw = raw_schema(folder)
    raw["validation"]["drift"] = drift
    write_rows(folder, **{"events-0": EVENTS, "items": ITEMS, "users": USERS})
    old = features.run(schema_of(raw), folder / "old")
    write_rows(folder, **{"events-1": [{**EVENTS[0], "time": at(30 + n / 10)} for n in range(5)]})
    write_rows(folder, items=[{**item, "color": None if item["item"] < 40 else "red"} for item in ITEMS])
    return features.run(schema_of(raw), folder / "new", previous=old)


def test_drift_is_noted_in_the_manifest_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "towerline.features"):
        new = two_days(tmp_path, "warn")
    noted = open_artifact(new, kind="features").manifest.facts["drift"]
    assert noted["compared_with"] == open_artifact(tmp_path / "old", kind="features").manifest.fingerprint
    found = {(drift["kind"], drift["column"]): (drift["before"], drift["now"]) for drift in noted["found"]}
    # Seven events on the 23 days to the 23rd of January; none on the next seven, five on the 31st.
    assert found == {
        ("null_rate", "items.color"): (0.0, 0.75),
        **{("daily_volume", f"2025-01-{day}"): (7 / 23, 0) for day in range(24, 31)},
        ("daily_volume", "2025-01-31"): (7 / 23, 5),
    }
    assert "drift: null_rate of items.color: 0 before, 0.75 now (limit 0.05)" in caplog.text


def test_a_full_run_sees_the_days_without_events_that_an_incremental_one_sees(tmp_path: Path) -> None:
    """The 25th is missing between the 24th and the 26th; a first run has nothing to compare with."""
    raw = raw_schema(tmp_path)
    daily = [{**EVENTS[0], "time": at(day)} for day in range(24)]
    write_rows(tmp_path, **{"events-0": daily, "items": ITEMS, "users": USERS})
    old = features.run(schema_of(raw), tmp_path / "old")
    write_rows(tmp_path, **{"events-1": [{**EVENTS[0], "time": at(day)} for day in (24, 26)]})
    appended = features.run(schema_of(raw), tmp_path / "appended", previous=old)
    raw["seed"] = 18
    full = features.run(schema_of(raw), tmp_path / "full", previous=old)
    facts = [open_artifact(out, kind="features").manifest.facts for out in (old, appended, full)]
    assert [fact["increment"]["used"] for fact in facts] == [False, True, False]
    assert facts[0]["drift"] is None
    missing = {"kind": "daily_volume", "column": "2025-01-26", "before": 1.0, "now": 0, "limit": 0.5}
    assert [fact["drift"]["found"] for fact in facts[1:]] == [[missing]] * 2


def test_events_in_an_order_have_no_days(tmp_path: Path) -> None:
    raw = raw_schema(tmp_path)
    raw["tables"]["events"]["order"] = raw["tables"]["events"].pop("time")
    raw["split"] = {"valid_from": 10, "test_from": 20}
    raw["features"] = {"item": [{"name": "item", "kind": "id"}]}
    ordered = [{**event, "time": 5 * place} for place, event in enumerate(EVENTS)]
    write_rows(tmp_path, **{"events-0": ordered, "items": ITEMS, "users": USERS})
    old = features.run(schema_of(raw), tmp_path / "old")
    write_rows(tmp_path, **{"events-1": [{**EVENTS[0], "time": 10**12}]})
    new = features.run(schema_of(raw), tmp_path / "new", previous=old)
    facts = open_artifact(new, kind="features").manifest.facts
    assert (facts["days"], facts["drift"]["found"], facts["increment"]["used"]) == ({}, [], True)


def test_drift_fails_the_job_or_is_not_looked_at_as_the_schema_says(tmp_path: Path) -> None:
    (tmp_path / "off").mkdir()
    assert open_artifact(two_days(tmp_path / "off", "off"), kind="features").manifest.facts["drift"] is None
    with pytest.raises(SchemaError, match=r"validation.drift: .* null_rate of items.color: 0 before, 0.75 now"):
        two_days(tmp_path, "fail")
    assert not (tmp_path / "new").exists()


TWICE = [*EVENTS, EVENTS[1], EVENTS[1], {**EVENTS[3], "price": 9.0}]


def test_duplicates_are_counted(tmp_path: Path) -> None:
    write_rows(tmp_path, events=TWICE, items=ITEMS, users=USERS)
    out = features.run(schema_of(raw_schema(tmp_path)), tmp_path / "features")
    facts = open_artifact(out, kind="features").manifest.facts
    assert (facts["duplicates"], facts["counts"]["events"]) == (2, len(TWICE))


def test_duplicates_are_rejected_where_the_schema_says_so(tmp_path: Path) -> None:
    write_rows(tmp_path, events=TWICE, items=ITEMS, users=USERS)
    raw = raw_schema(tmp_path)
    raw["validation"] = {"duplicates": "reject", "max_rate": {"duplicate": 0.2}}
    out = features.run(schema_of(raw), tmp_path / "features")
    facts = open_artifact(out, kind="features").manifest.facts
    assert (facts["duplicates"], facts["counts"]["events"]) == (2, len(TWICE) - 2)
    assert facts["tables"]["events"] == {"rows": len(TWICE), "rejects": {"duplicate:event": 2}}
    assert Sequences.open(out).events.values.tolist() == [1, 2, 3, 5, 4, 9, 7, 6]
    rejects = pq.read_table(out / "rejects").to_pylist()
    assert [(reject["table"], reject["reason"]) for reject in rejects] == [("events", "duplicate:event")] * 2
    assert json.loads(rejects[0]["record"]) == {"user": 1, "item": 10, "time": "2025-01-03T00:00:00.000000"}
    raw["validation"]["max_rate"] = {"duplicate": 0.1}
    with pytest.raises(SchemaError, match=r"2 of 10 rows rejected .20.00%., validation.max_rate.duplicate:event is 10"):
        features.run(schema_of(raw), tmp_path / "again")
