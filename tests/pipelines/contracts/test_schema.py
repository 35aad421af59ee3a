"""The schema: what a TOML may say, and the errors when it says something else."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts.errors import ConfigError
from pipelines.contracts.schema import DatasetSchema, parse_schema, resolve_paths
from tests.worlds import TOML


def marketplace(**changes: Any) -> dict[str, Any]:
    raw = tomllib.loads(TOML)
    del raw["index"]
    return {**raw, **changes}


def test_a_whole_toml_is_read() -> None:
    schema = parse_schema(marketplace(), "m.toml")
    assert [feature.kind for feature in schema.side("item")] == [
        "id",
        "categorical",
        "text",
        "list",
        "numeric",
        "embedding",
    ]
    assert schema.split.valid_from == datetime.datetime(2025, 2, 16, tzinfo=datetime.UTC)
    assert schema.action_names == ("click", "purchase")


def test_a_schema_survives_the_way_through_json() -> None:
    schema = parse_schema(marketplace(), "m.toml")
    assert DatasetSchema.model_validate_json(schema.model_dump_json()) == schema


def test_an_item_side_without_features_is_the_item_id() -> None:
    schema = parse_schema(marketplace(features={}), "m.toml")
    assert [(feature.name, feature.source) for feature in schema.side("item")] == [("item_id", "item_id")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {"name": "m", "nmae": "x"}}, "m.toml: dataset.nmae: unknown key"),
        (
            {"features": {"item": [{"name": "a", "kind": "colour"}]}},
            "features.item.0: unknown kind 'colour'; expected one of",
        ),
        (
            {"features": {"item": [{"name": "a", "kind": "id", "dim": 3}]}},
            "features.item.0.dim: only kind = 'embedding' reads it, and kind is 'id' here",
        ),
        ({"validation": {"columns": {"events": {"price": {"mni": 1}}}}}, "events.price.mni: unknown key"),
        ({"hystory": {}}, "m.toml: hystory: unknown key: remove it or correct its name; did you mean history?"),
        ({"features": {"user": [{"name": "history", "kind": "list"}]}}, "'history' is a reserved name"),
        ({"features": {"user": [{"name": "a", "kind": "id"}] * 2}}, "each name may occur once, repeated: a"),
        ({"split": {}}, "exactly one of valid_from with test_from, valid_days with test_days, column"),
        ({"split": {"valid_from": "2025-02-01"}}, "valid_from and test_from go together"),
        ({"split": {"valid_from": "2025-03-01", "test_from": "2025-02-01"}}, "expected valid_from < test_from"),
        ({"split": {"valid_from": 1, "test_from": 2}}, "tables.events.time is a time"),
        ({"split": {"valid_days": 7}}, "valid_days and test_days go together"),
        ({"split": {"valid_days": 7, "test_days": 0}}, "split.test_days"),
        ({"split": {"valid_days": 7, "test_days": 1.5}}, "split.test_days"),
        (
            {"split": {"valid_days": 7, "test_days": 7, "history_days": 14}},
            "expected history_days > valid_days + test_da",
        ),
        ({"split": {"valid_days": 7, "test_days": 7, "test_until": "2025-03-01"}}, "--as-of DATE"),
        ({"split": {"valid_days": 7, "test_days": 7, "column": "s"}}, "give exactly one of"),
        ({"split": {"leave_last_out": True, "history_days": 90}}, "history_days needs rolling windows"),
        ({"split": {"column": "s", "history_days": 90}}, "history_days needs rolling windows"),
        ({"tables": {"events": {"path": "e", "user_id": "u", "item_id": "i"}}}, "exactly one of time = COLUMN"),
        ({"tables": {}}, "m.toml: tables.events: required, but missing"),
        ({"split": {"column": "s", "valid_fraction": 1.5}}, "split.valid_fraction"),
    ],
)
def test_a_mistake_is_reported_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_schema(marketplace(**changes), "m.toml")
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_rolling_windows_need_a_column_of_times() -> None:
    ordered = {"path": "e", "user_id": "u", "item_id": "i", "order": "n"}
    with pytest.raises(ConfigError, match=r"valid_days and test_days count days: tables\.events\.time must name"):
        changes = {
            "split": {"valid_days": 7, "test_days": 7},
            "tables": {"events": ordered},
            "actions": {},
            "features": {},
        }
        parse_schema(marketplace(**changes), "m.toml")


def test_windows_are_whole_days_before_their_end() -> None:
    """The end is 2025-03-01, day 20,148 since 1970: test from day 20,141, valid from 20,139, history from 20,058."""
    split = parse_schema(marketplace(split={"valid_days": 2, "test_days": 7, "history_days": 90}), "m.toml").split
    day, end = 86_400_000_000, 20_148
    window = split.window(end * day)
    assert [window.history_from, *window.bounds, window.end] == [20_058 * day, 20_139 * day, 20_141 * day, end * day]
    assert str(window) == "history from 2024-12-01, valid from 2025-02-20, test from 2025-02-22, end 2025-03-01"
    whole = split.window(end * day, whole=True)
    assert [whole.history_from, *whole.bounds, whole.end] == [20_058 * day, *[end * day] * 3]


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_schema(marketplace(dataset={"name": "m", "x": 1}, seed="seven"), "m.toml")
    assert "dataset.x" in str(error.value)
    assert "seed" in str(error.value)


def test_features_of_a_table_that_is_not_given_are_refused() -> None:
    raw = marketplace()
    del raw["tables"]["users"]
    with pytest.raises(ConfigError, match=r"features.user 'country' needs \[tables.users\]"):
        parse_schema(raw, "m.toml")


def test_relative_paths_start_at_the_folder_of_the_toml() -> None:
    raw = marketplace()
    raw["tables"]["items"]["path"] = ["/abs/items.parquet", "gs://bucket/items/*.parquet", "more.csv"]
    tables = resolve_paths(raw, Path("/data"))["tables"]
    assert tables["events"]["path"] == "/data/events.parquet"
    assert tables["items"]["path"] == ["/abs/items.parquet", "gs://bucket/items/*.parquet", "/data/more.csv"]


def test_a_schema_with_declared_types_is_read_back_from_its_json() -> None:
    raw = marketplace()
    raw["tables"]["items"]["types"] = {
        "category": "string",
        "tags": {"type": "list", "separator": "|"},
        "listed_at": {"type": "timestamp", "unit": "s", "timezone": "Europe/Berlin"},
    }
    schema = parse_schema(raw, "m.toml")
    assert DatasetSchema.model_validate_json(schema.model_dump_json()) == schema


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-02-01", datetime.datetime(2026, 2, 1)),
        ('"2026-02-01"', datetime.datetime(2026, 2, 1)),
        ("2026-02-01T12:30:00", datetime.datetime(2026, 2, 1, 12, 30)),
        ("2026-02-01 12:30:00Z", datetime.datetime(2026, 2, 1, 12, 30)),
        ("2026-02-01T01:30:00+02:00", datetime.datetime(2026, 1, 31, 23, 30)),
        ('"2026-02-01T01:30+02:00"', datetime.datetime(2026, 1, 31, 23, 30)),
    ],
)
def test_all_moments_of_the_schema_are_read_alike_and_are_utc(written: str, expected: datetime.datetime) -> None:
    given = tomllib.loads(f"moment = {written}")["moment"]
    raw = marketplace(validation={"latest": given}, split={"valid_from": datetime.date(2025, 1, 1), "test_from": given})
    schema = parse_schema(raw, "m.toml")
    assert schema.validation.latest == schema.split.test_from == expected.replace(tzinfo=datetime.UTC)
    assert schema.validation.latest.tzinfo is datetime.UTC
    raw["validation"] = {"earliest": given}
    assert parse_schema(raw, "m.toml").validation.earliest == schema.validation.latest


@pytest.mark.parametrize("written", ["5", "true", '"01/02/2026"', "2026.5"])
def test_what_is_no_moment_is_refused_with_the_forms_that_are_understood(written: str) -> None:
    given = tomllib.loads(f"moment = {written}")["moment"]
    with pytest.raises(ConfigError, match=r"validation\.latest: expected a date or a time, such as 2026-02-01"):
        parse_schema(marketplace(validation={"latest": given}), "m.toml")


def test_an_empty_range_of_times_is_refused() -> None:
    day = datetime.date(2026, 2, 1)
    with pytest.raises(ConfigError, match="expected earliest < latest"):
        parse_schema(marketplace(validation={"earliest": day, "latest": day}), "m.toml")


@pytest.mark.parametrize("column", ["time", "action", "price"])
@pytest.mark.parametrize("declared", ["string", "int64", "float64", "bool", "timestamp", "list", "embedding"])
def test_a_declared_type_that_contradicts_a_role_is_refused_with_the_line(column: str, declared: str) -> None:
    fitting = {"time": ["timestamp"], "action": ["string"], "price": ["float64", "int64"]}[column]
    raw = marketplace()
    raw["tables"]["events"]["types"] = {column: declared}
    if declared in fitting:
        assert parse_schema(raw, "m.toml").column_types("events")[column].type == declared
    else:
        with pytest.raises(ConfigError, match=rf'\[tables.events.types\] {column} = "{declared}"') as caught:
            parse_schema(raw, "m.toml")
        assert f'write {column} = "{fitting[0]}"' in str(caught.value)
