"""The summary's lines: what a person reads at the end of a run."""

from __future__ import annotations

import json

from pipelines.features.reporting.data_summary import (
    DataSummary,
    RejectCount,
    UnknownIds,
    lines,
)
from pipelines.tables.rejects.multi_line import MultiLineCells
from pipelines.tables.rejects.place import Place

FULL = DataSummary(
    users=120_000,
    items=40_000,
    events={"train": 1_234_567, "valid": 1_000, "test": 2_000},
    new_users=1_203,
    new_items=312,
    rows={"events": 1_240_000, "items": 40_001},
    rejects=[
        RejectCount("events", "range:time", 3),
        RejectCount("events", "type:price", 1_200, Place("e.csv", 17, "price", "abc", "a finite number")),
        RejectCount("items", "null:item", 1, Place("i.csv", 9, "item")),
    ],
    unknown={"user": UnknownIds(0), "item": UnknownIds(230, "0042", "42")},
    joined=0.9998,
    multi_line=[MultiLineCells("items", "title", 2, 1_400, "i.csv", 33)],
    drift=["mean of item.price: 3 before, 9 now (limit 0.5)"],
)


def test_every_figure_has_a_line_and_every_reason_its_example() -> None:
    assert lines(FULL) == [
        "users                    120,000  1,203 new in test",
        "items                     40,000  312 new in test",
        "events                 1,237,567  train 1,234,567, valid 1,000, test 2,000",
        "joined                    99.98%  events whose user and item are in their tables",
        "unknown items                230  events, such as '0042' (tables.items has '42')",
        "rejected events            1,203  of 1,240,000 rows (0.10%)",
        "  type:price               1,200  e.csv row 17, price = 'abc', expected a finite number",
        "  range:time                   3",
        "rejected items                 1  of 40,001 rows (0.00%)",
        "  null:item                    1  i.csv row 9, item",
        "multi-line cells               2  in column 'title' of i.csv; the largest has 1,400 lines, row 33",
        "drift                             mean of item.price: 3 before, 9 now (limit 0.5)",
    ]


def test_figures_of_a_sample_are_marked() -> None:
    events = {"train": 10, "valid": 0, "test": 2}
    sampled = DataSummary(5, 6, events, 1, 2, rows={"events": 12}, sample="the first 12 events")  # type: ignore[arg-type]
    assert lines(sampled) == [
        "estimated from the first 12 events",
        "users                         ~5  ~1 new in test",
        "items                         ~6  ~2 new in test",
        "events                       ~12  train ~10, valid ~0, test ~2",
        "rejected events               ~0  of ~12 rows",
    ]


def test_the_facts_are_json() -> None:
    facts = json.loads(json.dumps(FULL.as_facts()))
    assert facts["events"] == {"train": 1_234_567, "valid": 1_000, "test": 2_000}
    assert facts["rejects"][1]["example"]["value"] == "abc"
    assert facts["unknown"]["item"] == {"events": 230, "example": "0042", "known": "42"}
