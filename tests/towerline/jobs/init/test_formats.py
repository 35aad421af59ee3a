"""Laws over random shops: the types proposed are those the shop was made with, and the same from every format."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import towerline
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema
from tests.towerline.jobs.init.worlds import FORMATS, ID_KINDS, World, make_world, write
from towerline.config import Config, load_config

# The arguments of make_world.
recipes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "item_ids": st.sampled_from(sorted(ID_KINDS)),
        "user_ids": st.sampled_from(sorted(ID_KINDS)),
        "unit": st.sampled_from(["", "s", "ms", "us", "ns"]),
    }
)


def proposed(world: World, folder: Path, form: str) -> str:
    """The TOML for a world in one format."""
    paths = {name: write(rows, folder, name, form) for name, rows in world.tables.items()}
    return towerline.init(**paths, name="shop", folder=folder).toml


def loaded(toml: str, folder: Path) -> Config:
    path = folder / "shop.toml"
    path.write_text(toml)
    return load_config(path)


def types_of(schema: DatasetSchema, table: Any) -> dict[str, ColumnType]:
    """Types in every format: those written down, or implied by role and kind."""
    return schema.column_types(table, text=False)


@settings(max_examples=8, deadline=None)
@given(recipe=recipes, form=st.sampled_from(FORMATS))
def test_the_proposed_types_are_those_the_tables_were_made_with(recipe: dict[str, Any], form: str) -> None:
    world = make_world(**recipe)
    with TemporaryDirectory() as folder:
        config = loaded(proposed(world, Path(folder), form), Path(folder))
    assert {"user": config.ids.user, "item": config.ids.item} == world.ids
    assert (config.tables.events.user_id, config.tables.events.item_id) == ("who", "what")
    found = {table: types_of(config, table) for table in world.types}
    for table, columns in world.types.items():
        for name, kind in columns.items():
            # Numbers are float64 by their kind, whole or not.
            wanted = "float64" if kind == "int64" else kind
            assert found[table][name].type == wanted, (table, name)
    assert found["items"]["codes"].of == "int64"
    assert found["items"]["labels"].of == "string"


def without_form(toml: str) -> str:
    """The TOML without what a format alone decides: files, and the separator of lists in text."""
    raw = re.sub(r'"[^"]*\.(parquet|csv|tsv|jsonl)[^"]*"', '"FILE"', toml)
    return re.sub(r'(, )?separator = "[^"]*"', "", raw)


@settings(max_examples=3, deadline=None)
@given(recipe=recipes)
def test_every_format_gives_the_same_toml(recipe: dict[str, Any]) -> None:
    world = make_world(**recipe)
    with TemporaryDirectory() as folder:
        tomls = {form: tomllib.loads(without_form(proposed(world, Path(folder), form))) for form in FORMATS}
    first = _plain_types(tomls["parquet"])
    for form, toml in tomls.items():
        assert _plain_types(toml) == first, form


def _plain_types(toml: dict[str, Any]) -> dict[str, Any]:
    """``{ type = "list" }`` written as ``"list"``."""
    for table in toml["tables"].values():
        for name, kind in table.get("types", {}).items():
            if isinstance(kind, dict) and set(kind) == {"type"}:
                table["types"][name] = kind["type"]
    # A vector in text has its separator written down; in Parquet its kind implies all.
    for table in toml["tables"].values():
        table["types"] = {name: kind for name, kind in table.get("types", {}).items() if kind != "embedding"}
    return toml


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    world = make_world(3, "small", "letters", "")
    assert proposed(world, tmp_path, "parquet") == proposed(world, tmp_path, "parquet")


def test_a_column_that_folders_give_is_typed_like_one_of_the_file(tmp_path: Path) -> None:
    world = make_world(7, "small", "letters", "")
    plain = loaded(proposed(world, tmp_path / "plain", "csv"), tmp_path)
    events = world.events
    for verb in ("view", "click", "buy"):
        rows = [row for row, value in enumerate(events["verb"]) if value == verb]
        part = {name: [cells[row] for row in rows] for name, cells in events.items() if name != "verb"}
        write(part, tmp_path / "hive" / f"verb={verb}", "part", "csv.gz")
    paths = {name: write(getattr(world, name), tmp_path, name, "parquet") for name in ("items", "users")}
    hive = loaded(towerline.init(events=tmp_path / "hive", **paths, folder=tmp_path).toml, tmp_path)
    assert hive.tables.events.action == "verb"
    assert hive.actions == plain.actions
    assert types_of(hive, "events") == types_of(plain, "events")


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.float64(), pa.decimal128(20, 0), pa.string()])
def test_whole_ids_are_int64_however_a_file_stores_them(tmp_path: Path, kind: pa.DataType) -> None:
    world = make_world(8, "small", "small", "")
    paths = {name: write(rows, tmp_path, name, "parquet") for name, rows in world.tables.items()}
    events = pq.read_table(paths["events"])
    place = events.column_names.index("what")
    pq.write_table(events.set_column(place, "what", events["what"].cast(kind)), paths["events"])
    config = loaded(towerline.init(**paths, folder=tmp_path).toml, tmp_path)
    assert config.ids.item == "int64"
    assert config.tables.events.item_id == "what"


@pytest.mark.parametrize("as_text", [False, True])
def test_whole_ids_beyond_an_int64_are_strings(tmp_path: Path, *, as_text: bool) -> None:
    world = make_world(9, "small", "small", "")
    for rows in (world.events, world.items):
        large = pa.array([2**64 - 1 - item for item in rows["what"]], pa.uint64())
        rows["what"] = large.cast(pa.string()) if as_text else large
    paths = {name: write(rows, tmp_path, name, "parquet") for name, rows in world.tables.items()}
    config = loaded(towerline.init(**paths, folder=tmp_path).toml, tmp_path)
    assert config.ids.item == "string"


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_delimiter_of_a_csv_is_found_and_written_down(tmp_path: Path, delimiter: str) -> None:
    world = make_world(4, "small", "small", "")
    plain = {name: write(rows, tmp_path, name, "tsv").read_text() for name, rows in world.tables.items()}
    plain = {name: text.replace("|", "^").replace("\t", delimiter) for name, text in plain.items()}
    if delimiter == ";":
        plain = {name: text.replace("tea; green", "tea") for name, text in plain.items()}
    for name, text in plain.items():
        (tmp_path / f"{name}.csv").write_text(text)
    paths = {name: tmp_path / f"{name}.csv" for name in plain}
    toml = towerline.init(**paths, folder=tmp_path).toml
    assert loaded(toml, tmp_path).tables.events.delimiter == delimiter


def test_lines_that_give_no_row_are_counted_with_an_example(tmp_path: Path) -> None:
    world = make_world(5, "small", "small", "")
    paths = {name: write(rows, tmp_path, name, "csv") for name, rows in world.tables.items()}
    with paths["events"].open("a") as file:
        file.write("a,b\n" * 100)
    draft = towerline.init(**paths, folder=tmp_path)
    assert "# check: 100 lines give no row" in draft.toml
    assert loaded(draft.toml, tmp_path).validation.max_reject_rate > 100 / 1_600
    paths["events"].write_text("a,b\n1\n2\n")
    with pytest.raises(SchemaError, match="found 2 lines that give none"):
        towerline.init(**paths, folder=tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
def test_the_encoding_of_a_text_is_found_and_written_down(tmp_path: Path, encoding: str) -> None:
    world = make_world(5, "small", "small", "")
    world.items["kind"][0] = "Café"
    paths = {name: write(rows, tmp_path, name, "csv") for name, rows in world.tables.items()}
    paths["items"].write_bytes(paths["items"].read_text(encoding="utf-8").encode(encoding))
    config = loaded(towerline.init(**paths, folder=tmp_path).toml, tmp_path)
    assert config.tables.items is not None
    assert config.tables.items.encoding == {"utf-8-sig": "utf-8"}.get(encoding, encoding)


def test_commas_that_may_be_thousands_are_a_question(tmp_path: Path) -> None:
    world = make_world(6, "small", "small", "")
    del world.items["picture"]
    world.items["cost"] = [f"{row + 1},000" for row in range(len(world.items["what"]))]
    paths = {name: write(rows, tmp_path, name, "csv") for name, rows in world.tables.items()}
    draft = towerline.init(**paths, folder=tmp_path)
    assert "tables.items.decimal" in [question.key for question in draft.open]
    assert "# check: Which is the decimal mark of items?" in draft.toml


def test_a_decimal_comma_is_found_and_written_down(tmp_path: Path) -> None:
    world = make_world(6, "small", "small", "")
    del world.items["picture"]
    world.items["cost"] = [None if cost is None else str(cost).replace(".", ",") for cost in world.items["cost"]]
    paths = {name: write(rows, tmp_path, name, "csv") for name, rows in world.tables.items()}
    config = loaded(towerline.init(**paths, folder=tmp_path).toml, tmp_path)
    assert config.tables.items is not None
    assert config.tables.items.decimal == ","
    assert config.column_types("items")["cost"].type == "float64"
