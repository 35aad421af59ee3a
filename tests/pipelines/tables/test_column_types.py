"""Types of columns are declared, implied, or those of the Parquet files, widened; values decide nothing."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema
from pipelines.tables.column_types import TableTypes, id_types, table_types
from pipelines.tables.files import find_files
from pipelines.tables.readers import plan_shards, read_shard
from tests.pipelines.conftest import schema_of


def schema(folder: Path, **items: Any) -> DatasetSchema:
    ids = items.pop("ids", {})
    return schema_of(
        {
            "dataset": {"name": "x"},
            "ids": ids,
            "tables": {
                "events": {"path": str(folder / "events*"), "user_id": "u", "item_id": "i", "unordered": True},
                "items": {"path": str(folder / "items*"), "item_id": "i", **items},
            },
            "split": {"column": "part"},
        }
    )


def settled(folder: Path, **items: Any) -> TableTypes:
    own = schema(folder, **items)
    assert own.tables.items is not None
    files = find_files(own.tables.items, "items")
    return table_types(own, "items", files, id_types(own, {"items": files}))


def put(folder: Path, *columns: pa.Array | None, name: str = "c") -> None:
    """Writes one Parquet part per column; None leaves the column out."""
    for place, column in enumerate(columns):
        table = pa.table({"i": [1, 2]} | ({} if column is None else {name: column}))
        pq.write_table(table, folder / f"items-{place}.parquet")


TEXT, ZONE = pa.array(["a", None]), pa.timestamp("ms", tz="Europe/Berlin")
HELD = [
    ([TEXT.dictionary_encode(), TEXT, TEXT.cast(pa.large_string())], "string"),
    ([pa.array([True, False]), pa.array([1, 2], pa.int32())], "int64"),
    ([pa.array([1, 2], pa.uint8()), pa.array([1, 2], pa.int64())], "int64"),
    ([pa.array([1, 2]), pa.array([0.5, 2], pa.float32()), pa.array([True, None])], "float64"),
    ([pa.array([1, 2]), pa.array([Decimal("1.5"), None])], "float64"),
    ([pa.array([0, 1], pa.timestamp("ns")), pa.array([0, 1], ZONE), pa.array([0, 1], pa.date32())], "timestamp"),
    ([pa.array([["a"], []]), pa.array([["b"], None], pa.large_list(pa.large_string()))], "list"),
    ([pa.nulls(2), TEXT], "string"),
    ([pa.nulls(2), pa.nulls(2)], "string"),
    ([None, pa.array([1, 2])], "int64"),
]


@pytest.mark.parametrize(("columns", "kind"), HELD)
def test_parts_of_different_types_are_held_by_one(tmp_path: Path, columns: list[Any], kind: str) -> None:
    put(tmp_path, *columns)
    assert settled(tmp_path).kinds["c"].type == kind


def test_text_next_to_numbers_needs_a_declaration(tmp_path: Path) -> None:
    put(tmp_path, pa.array([1, 2]), TEXT)
    message = r"column 'c' is int64 in .*items-0.parquet and string in .*items-1.parquet.*\[tables.items.types\] c = "
    with pytest.raises(SchemaError, match=message):
        settled(tmp_path)
    assert settled(tmp_path, types={"c": "string"}).kinds["c"].type == "string"


def test_types_that_no_kind_expresses_stay_where_all_parts_agree(tmp_path: Path) -> None:
    column = pa.array([{"a": 1}, None])
    put(tmp_path, column, column)
    assert settled(tmp_path).kept == {"c": column.type}
    assert settled(tmp_path).arrow_schema.field("c").type == column.type
    put(tmp_path, column, pa.array([{"b": 1}, None]))
    with pytest.raises(SchemaError, match="Declare its type"):
        settled(tmp_path)


def test_with_a_text_file_what_is_not_declared_is_text(tmp_path: Path) -> None:
    put(tmp_path, pa.array([1, 2]))
    (tmp_path / "items-9.csv").write_text("i,c,d\n3,4,5\n")
    with pytest.raises(SchemaError, match=r"expected column 'd' in .*items-0.parquet, found only i, c"):
        settled(tmp_path, types={"d": "float64"})
    kinds = settled(tmp_path).kinds
    assert {name: kind.type for name, kind in kinds.items()} == {"i": "string", "c": "string", "d": "string"}


def test_a_part_without_a_column_gives_nulls(tmp_path: Path) -> None:
    put(tmp_path, pa.array([1, 2]), None)
    own = schema(tmp_path)
    source = own.tables.items
    assert source is not None
    files, kinds = find_files(source, "items"), settled(tmp_path).kinds
    rows = [
        row
        for shard in plan_shards(files, source, "items")
        for batch in read_shard(shard, source, ["c"], kinds)
        for row in batch.table["c"].to_pylist()
    ]
    assert rows == [1, 2, None, None]


def test_an_empty_text_file_has_no_columns_to_lack(tmp_path: Path) -> None:
    (tmp_path / "items-0.csv").write_text("")
    (tmp_path / "items-1.csv").write_text("i,c\n1,2\n")
    assert settled(tmp_path, types={"c": "int64"}).kinds["c"].type == "int64"
    (tmp_path / "items-1.csv").unlink()
    with pytest.raises(SchemaError, match=r"expected column 'i' in .*items-0.csv, found only none"):
        settled(tmp_path)


def test_keys_that_one_json_file_leaves_out_are_missing(tmp_path: Path) -> None:
    (tmp_path / "items-0.jsonl").write_text('{"i": 1}')
    (tmp_path / "items-1.jsonl").write_text('{"i": 1, "c": 2}')
    assert settled(tmp_path, types={"c": "int64"}).kinds["c"].type == "int64"
    with pytest.raises(SchemaError, match=r"expected column 'd' in .*items-0.jsonl"):
        settled(tmp_path, types={"d": "int64"})


@pytest.mark.parametrize(
    ("column", "ids", "types", "kind"),
    [
        (pa.array([1, 2], pa.int32()), {}, {}, "int64"),
        (pa.array([1.0, None]), {}, {}, "string"),
        (pa.array(["1", "2"]), {}, {}, "string"),
        (pa.array(["1", "2"]), {"item": "int64"}, {}, "int64"),
        (pa.array([1, 2]), {}, {"i": "string"}, "string"),
    ],
)
def test_ids_are_integers_where_all_files_are_parquet_with_integers(
    tmp_path: Path, column: pa.Array, ids: dict[str, str], types: dict[str, str], kind: str
) -> None:
    pq.write_table(pa.table({"i": column}), tmp_path / "items.parquet")
    assert settled(tmp_path, ids=ids, types=types).kinds["i"].type == kind


def test_an_id_that_is_no_text_and_no_integer_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": [[1]]}), tmp_path / "items.parquet")
    with pytest.raises(SchemaError, match=r"column 'i' has type list.* an id is an integer or a text"):
        settled(tmp_path)


def test_a_name_of_several_columns_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("i,c,c,\n1,2,3,\n")
    assert settled(tmp_path).columns == ("i",)
    with pytest.raises(SchemaError, match=r"items.csv names a column twice: c. Rename one"):
        settled(tmp_path, types={"c": "string"})
