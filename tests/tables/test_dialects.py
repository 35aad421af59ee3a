"""The small shop as other software exports it: each dialect comes to the features of the reference."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import DatasetSchema, parse_schema, resolve_paths
from pipelines.features import job as features
from pipelines.sequences.reader import Sequences, load_encoded, load_items, load_users
from tests.tables.small_shop import events, items, users

DIALECTS = Path(__file__).parent / "dialects"
NAMES = sorted(path.parent.name for path in DIALECTS.glob("*/tables.toml"))


def schema_of(name: str) -> DatasetSchema:
    """The dialect's tables with the features that all share."""
    shared = tomllib.loads((DIALECTS.parent / "shop.toml").read_text())
    own = resolve_paths(tomllib.loads((DIALECTS / name / "tables.toml").read_text()), DIALECTS / name)
    return parse_schema({**shared, **own}, name)


def content(out: Path) -> dict[str, Any]:
    """All that later stages read."""
    opened = Sequences.open(out)
    facts = open_artifact(out, kind="features").manifest.facts
    columns = ("offsets", "rows", "times", "actions", "values", "splits")
    return {
        "rejects": {table: counts["rejects"] for table, counts in facts["tables"].items()},
        "table rows": {table: counts["rows"] for table, counts in facts["tables"].items()},
        "counts": facts["counts"],
        "user ids": opened.user_ids.to_pylist(),
        **{name: getattr(opened.events, name).tolist() for name in columns},
        "items": load_items(out).to_pylist(),
        "users": load_users(out).to_pylist(),
        **{
            f"encoded {side} {name}": values.tolist()
            for side in ("item", "user")
            for name, values in load_encoded(out, side).items()  # type: ignore[arg-type]
        },
        "vocabulary": {file.name: file.read_bytes() for file in (out / "vocabulary").iterdir()},
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return content(features.run(schema_of("arrow_parquet"), tmp_path_factory.mktemp("reference") / "features"))


def test_the_reference_is_the_shop(reference: dict[str, Any]) -> None:
    """From the rows themselves, without any table."""
    catalogue = {row["item"]: row for row in items()}
    assert [row["item"] for row in reference["items"]] == sorted(catalogue)
    for row in reference["items"]:
        assert {key: row[key] for key in catalogue[row["item"]]} == catalogue[row["item"]]
    assert reference["user ids"] == [row["user"] for row in users()]
    assert [
        {key: row["user_id" if key == "user" else key] for key in users()[0]} for row in reference["users"]
    ] == users()
    ids, found = sorted(catalogue), []
    for place, user in enumerate(reference["user ids"]):
        own = range(reference["offsets"][place], reference["offsets"][place + 1])
        found += [(user, ids[reference["rows"][event]], reference["times"][event]) for event in own]
    expected = [(row["user"], row["item"], round(row["at"].timestamp() * 1e6)) for row in events()]
    assert sorted(found) == sorted(expected)
    assert reference["counts"]["events"] == 300


@pytest.mark.parametrize("name", [name for name in NAMES if name != "arrow_parquet"])
def test_a_dialect_comes_to_the_features_of_the_reference(name: str, reference: dict[str, Any], tmp_path: Path) -> None:
    found = content(features.run(schema_of(name), tmp_path / "features"))
    # A saved index is a column that nobody reads.
    found["items"] = [{key: row[key] for key in reference["items"][0]} for row in found["items"]]
    assert found.keys() == reference.keys()
    for part in reference:
        assert found[part] == reference[part], part
