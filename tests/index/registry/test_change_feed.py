"""The change feed: rows of the items table, written in any form, read as the nightly job read them."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.building.stored_types import with_stored_types
from index.registry.bundle import Bundle
from index.registry.change_feed import read_changes
from index.registry.deltas import DeltaState
from index.registry.upserts import AdColumns
from pipelines.contracts.encoding import encode_table
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import read_manifest, write_artifact
from pipelines.contracts.schema import DatasetSchema, parse_schema, resolve_paths
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.features import job as features_job
from pipelines.sequences.reader import load_encoded, load_items

ITEMS = 40
UTC = datetime.UTC
SCHEMA: dict[str, Any] = {
    "dataset": {"name": "feed"},
    "tables": {
        "events": {"path": "events.parquet", "user_id": "user", "item_id": "ad", "time": "at"},
        "items": {"path": "items.parquet", "item_id": "ad", "advertiser_id": "shop", "title": "title"},
    },
    "features": {
        "item": [
            {"name": "ad", "kind": "id"},
            {"name": "brand", "kind": "categorical"},
            {"name": "size", "kind": "categorical"},
            {"name": "words", "kind": "text", "column": "title", "min_frequency": 1},
            {"name": "tags", "kind": "list"},
            {"name": "price", "kind": "numeric", "scale": "log"},
            {"name": "listed", "kind": "time_since"},
            {"name": "picture", "kind": "embedding", "dim": 3},
        ]
    },
    "split": {"valid_from": "2026-01-20", "test_from": "2026-01-25"},
}
ATTRIBUTES = ("shop", "title", "brand", "size", "price", "listed", "tags", "in_stock")


def items_table(ids: list[Any]) -> pa.Table:
    """Items with all that CSV makes hard: NA as text, quotes, line ends, missing cells, whole floats."""
    rng = np.random.default_rng(3)
    brands = ["NA", "null", 'Ärmel, "best"', " blank ", None, "true"]
    return pa.table(
        {
            "ad": ids,
            "shop": pa.array([(7, 8, None)[row % 3] for row in range(ITEMS)], pa.int64()),
            "title": [None if row % 9 == 0 else f"Red {brands[row % 4]}\nno. {row % 5}" for row in range(ITEMS)],
            "brand": [brands[row % 6] for row in range(ITEMS)],
            "size": pa.array([None if row % 7 == 0 else 36 + row % 4 for row in range(ITEMS)], pa.int32()),
            "tags": [None if row % 5 == 0 else ["sale", f"t{row % 3}"][: row % 3] for row in range(ITEMS)],
            "price": pa.array([None if row % 8 == 0 else float(row) * 0.25 for row in range(ITEMS)]),
            "listed": pa.array(
                [
                    None if row % 6 == 0 else datetime.datetime(2025, 3, 1 + row % 20, 12, 30, 15, 250_000, UTC)
                    for row in range(ITEMS)
                ],
                pa.timestamp("ms", tz="Europe/Berlin"),
            ),
            "picture": [None if row % 10 == 0 else rng.normal(size=3).round(3).tolist() for row in range(ITEMS)],
            "in_stock": [row % 4 > 0 for row in range(ITEMS)],
        }
    )


def catalogue_rows(raw: pa.Table, bundle: Bundle) -> pa.Table:
    """The ads as rows of the bundle's items table."""
    columns = {name: raw[name].combine_chunks() for name in raw.column_names}
    return AdColumns.of(bundle).ads(columns["ad"], columns).items


class World:
    """A features artifact and a bundle of its items, without towers."""

    def __init__(self, root: Path, ids: list[Any]) -> None:
        root.mkdir()
        self.items = items_table(ids)
        pq.write_table(self.items, root / "items.parquet")
        days = [datetime.datetime(2026, 1, 1 + event % 28, tzinfo=UTC) for event in range(400)]
        events = {"user": [f"u{event % 9}" for event in range(400)], "ad": [ids[event % ITEMS] for event in range(400)]}
        pq.write_table(pa.table({**events, "at": days}), root / "events.parquet")
        schema = parse_schema(resolve_paths(SCHEMA, root), "test")
        features = features_job.run(schema, root / "features")
        self.as_of_us = int(read_manifest(features).facts["as_of_us"])
        self.encoded = load_encoded(features, "item")
        self.bundle = write_bundle(root / "bundle", features)
        self.row_of_id = {item_id: row for row, item_id in enumerate(self.bundle.vocabulary.item_ids.to_pylist())}


def write_bundle(path: Path, features: Path, attributes: tuple[str, ...] = ATTRIBUTES) -> Bundle:
    schema = DatasetSchema.model_validate_json((features / "schema.json").read_text())
    vocabulary, stored = Vocabulary.load(features / "vocabulary"), load_items(features)
    with write_artifact(path, kind="bundle", inputs={}) as draft:
        typed = with_stored_types(schema, features, vocabulary.item_ids.type)
        (draft.dir / "schema.json").write_text(typed.model_dump_json())
        shutil.copytree(features / "vocabulary", draft.dir / "vocabulary")
        table = pa.table({"item_id": vocabulary.item_ids, **{name: stored[name] for name in attributes}})
        pq.write_table(table, draft.dir / "items.parquet")
        np.save(draft.dir / "vectors.npy", np.zeros((len(stored), 2), np.float32))
    return Bundle.open(path)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    root = tmp_path_factory.mktemp("feed")
    numbers = [*range(-5, 30), 10**18 + 1, -(2**63), 2**63 - 1, 9007199254740993, 5007]
    texts = [f"00{row}" for row in range(30)] + ["7", "NA", "null", "a,b", 'q"', " x", "é", "-3", "1.0", "true"]
    return {"int64": World(root / "int64", numbers), "string": World(root / "string", texts)}


def text_cell(value: Any) -> str:
    """A cell of CSV as a careful writer writes it: text in quotes, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if isinstance(value, datetime.datetime | decimal.Decimal):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return '"' + text.replace('"', '""') + '"'


def as_text(table: pa.Table, delimiter: str) -> bytes:
    lines = [delimiter.join(table.column_names)]
    lines += [delimiter.join(map(text_cell, row.values())) for row in table.to_pylist()]
    return ("\r\n".join(lines) + "\r\n").encode()


def as_jsonl(table: pa.Table) -> bytes:
    return "".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()).encode()


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


WRITERS: dict[str, Callable[[pa.Table], bytes]] = {
    "parquet": as_parquet,
    "csv": lambda table: as_text(table, ","),
    "tsv": lambda table: as_text(table, "\t"),
    "jsonl": as_jsonl,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: bytes(pa.Codec("zstd").compress(content)),
}
FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "arrow": lambda table: table,
    "polars": pl.from_arrow,
    "pandas": lambda table: pd.DataFrame(table.to_pandas(types_mapper=pd.ArrowDtype)),
}
# Other types in which the same values may come, by column.
RETYPED: dict[str, list[Callable[[pa.Array], pa.Array]]] = {
    "ad": [
        lambda ids: ids.cast(pa.string()),
        lambda ids: ids.cast(pa.string()).cast(pa.string_view()),
        lambda ids: ids.cast(pa.string()).dictionary_encode(),
    ],
    "shop": [lambda shops: shops.cast(pa.string()), lambda shops: shops.cast(pa.float64())],
    "title": [lambda titles: titles.cast(pa.large_string()), lambda titles: titles.dictionary_encode()],
    "brand": [lambda brands: brands.cast(pa.string_view()), lambda brands: brands.dictionary_encode()],
    "size": [lambda sizes: sizes.cast(pa.float64()), lambda sizes: sizes.cast(pa.string())],
    "tags": [lambda tags: tags.cast(pa.large_list(pa.large_string())), lambda tags: json_texts(tags)],
    "price": [lambda prices: prices.cast(pa.string()), lambda prices: prices.cast(pa.decimal128(12, 4))],
    "listed": [
        lambda times: times.cast(pa.timestamp("ns", tz="America/New_York")),
        lambda times: times.cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us")),
        lambda times: pa.array([time.as_py() and time.as_py().isoformat(" ") for time in times], pa.string()),
    ],
    "picture": [lambda pictures: pictures.cast(pa.list_(pa.float64())), lambda pictures: json_texts(pictures)],
    "in_stock": [lambda flags: flags.cast(pa.int8()), lambda flags: flags.cast(pa.string())],
}


def json_texts(lists: pa.Array) -> pa.Array:
    return pa.array([None if one is None else json.dumps(one) for one in lists.to_pylist()], pa.string())


def retyped(table: pa.Table, data: st.DataObject) -> pa.Table:
    for name, forms in RETYPED.items():
        form = data.draw(st.sampled_from([None, *forms]), label=name)
        if form is not None:
            table = table.set_column(table.column_names.index(name), name, form(table[name].combine_chunks()))
    return table


@given(st.sampled_from(["int64", "string"]), st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_feed_in_any_form_is_read_as_the_nightly_table(
    worlds: dict[str, World], tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    world = worlds[kind]
    places = data.draw(st.lists(st.integers(0, ITEMS - 1), unique=True, min_size=1), label="rows")
    table = retyped(world.items.take(pa.array(places)), data)
    table = table.select(data.draw(st.permutations(table.column_names), label="order of columns"))
    form = data.draw(st.sampled_from([*WRITERS, *FRAMES]), label="form")
    if form in FRAMES:
        feed = FRAMES[form](table)
    else:
        packed = "" if form == "parquet" else data.draw(st.sampled_from(sorted(PACKERS)), label="packed")
        shutil.rmtree(tmp_path / "feed", ignore_errors=True)
        (tmp_path / "feed").mkdir()
        half = data.draw(st.integers(0, len(places)), label="rows of the first file")
        for number, part in enumerate((table.slice(0, half), table.slice(half))):
            (tmp_path / "feed" / f"{number}.{form}{packed}").write_bytes(PACKERS[packed](WRITERS[form](part)))
        feed = tmp_path / "feed"
    changes = read_changes(feed, DeltaState.of(world.bundle))
    assert changes.ids.num_rows == 0
    rows = [world.row_of_id[item_id] for item_id in changes.raw["ad"].to_pylist()]
    assert sorted(rows) == sorted(world.row_of_id[world.items["ad"][place].as_py()] for place in places)
    schema, vocabulary = world.bundle.schema, world.bundle.vocabulary
    encoded = encode_table(schema.side("item"), vocabulary.item, changes.raw, as_of_us=world.as_of_us)
    for name, expected in world.encoded.items():
        np.testing.assert_allclose(encoded[name], expected[rows], rtol=1e-6, atol=1e-6, err_msg=name)
    assert catalogue_rows(changes.raw, world.bundle).equals(world.bundle.items.take(pa.array(rows)).combine_chunks())


def test_a_change_is_read_in_any_case_and_empty_is_an_upsert(worlds: dict[str, World], tmp_path: Path) -> None:
    feed = tmp_path / "feed.csv"
    feed.write_text("ad,change,price\n1, Remove ,\n2.0,PAUSE,x\n3,,1.5\n99,upsert,2\n4,resume,\n")
    changes = read_changes(feed, DeltaState.of(worlds["int64"].bundle))
    assert changes.ids.to_pylist() == [
        {"item_id": 1, "change": "remove"},
        {"item_id": 2, "change": "pause"},
        {"item_id": 4, "change": "resume"},
    ]
    assert changes.raw.select(["ad", "price"]).to_pylist() == [{"ad": 3, "price": 1.5}, {"ad": 99, "price": 2.0}]


def test_all_bad_rows_are_named_by_reason(worlds: dict[str, World], tmp_path: Path) -> None:
    feed = tmp_path / "feed.csv"
    feed.write_text(
        'ad,change,price,picture\n1,,cheap,\nabc,,1,\n2,,1,"[1, 2]"\n3,drop,1,\n3,remove,,\n3,pause,,\n404,pause,,\n'
        "5,,dear,\n6,,1\n,,1,\n"
    )
    with pytest.raises(SchemaError) as refused:
        read_changes(feed, DeltaState.of(worlds["int64"].bundle))
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{feed}: 9 rows cannot be applied, so nothing was written. Correct them."
    assert lines[1] == (
        f"  type:price, 2 rows, the first: {feed} row 0, column 'price': expected a finite number, got 'cheap'"
    )
    by_reason = {line.split(",")[0].strip(): line for line in lines[1:]}
    assert set(by_reason) == {
        *("type:price", "type:ad", "dimension:picture", "change:change", "twice:ad", "unknown:ad", "malformed:line"),
        "null:ad",
    }
    assert "row 1, column 'ad': expected an integer" in by_reason["type:ad"]
    assert "row 2, column 'picture'" in by_reason["dimension:picture"]
    assert "row 5, column 'ad': expected each id once, got 3" in by_reason["twice:ad"]
    assert "row 6, column 'ad': expected an item of the live version, got 404" in by_reason["unknown:ad"]
    assert "row 8" in by_reason["malformed:line"]
    assert "row 9, column 'ad': expected an id: an integer from" in by_reason["null:ad"]


def test_the_feed_is_written_as_the_items_table_is(tmp_path: Path) -> None:
    """Semicolons, decimal commas, UTF-16, seconds and separators, as the TOML declares them for the items table."""
    items = {
        **SCHEMA["tables"]["items"],
        "path": "items.txt",
        "format": "csv",
        "delimiter": ";",
        "decimal": ",",
        "encoding": "utf-16",
        "types": {
            "ad": "int64",
            "listed": {"type": "timestamp", "unit": "s", "timezone": "Europe/Berlin"},
            "tags": {"type": "list", "separator": "|"},
            "picture": {"type": "embedding", "separator": " "},
        },
    }
    lines = ["ad;shop;title;brand;size;tags;price;listed;picture"]
    lines += [f"{ad};s{ad % 2};T {ad};b;{ad % 3};a|b;{ad},50;{1767225600 + ad};0,1 0,2 {ad},5" for ad in range(1, 9)]
    (tmp_path / "items.txt").write_text("\n".join(lines), "utf-16")
    at = [datetime.datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 29)]
    events = {"user": ["u"] * 28, "ad": [1 + day % 8 for day in range(28)], "at": at}
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    raw = {**SCHEMA, "ids": {"item": "int64"}, "tables": {**SCHEMA["tables"], "items": items}}
    features = features_job.run(parse_schema(resolve_paths(raw, tmp_path), "test"), tmp_path / "features")
    attributes = ("shop", "title", "brand", "size", "price", "listed", "tags")
    bundle = write_bundle(tmp_path / "bundle", features, attributes)
    (tmp_path / "changes.dump").write_text("\n".join(lines[:3]), "utf-16")
    changes = read_changes(tmp_path / "changes.dump", DeltaState.of(bundle))
    assert catalogue_rows(changes.raw, bundle).equals(bundle.items.slice(0, 2).combine_chunks())
    assert changes.raw["picture"].to_pylist()[1] == pytest.approx([0.1, 0.2, 2.5])
    assert changes.raw["listed"][0].as_py() == datetime.datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)


def test_without_an_items_table_a_feed_is_a_list_of_ids(tmp_path: Path) -> None:
    events = {"user": ["u"] * 28, "ad": [1 + day % 8 for day in range(28)]}
    at = [datetime.datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 29)]
    pq.write_table(pa.table({**events, "at": at}), tmp_path / "events.parquet")
    raw = {**SCHEMA, "tables": {"events": SCHEMA["tables"]["events"]}, "features": {}}
    features = features_job.run(parse_schema(resolve_paths(raw, tmp_path), "test"), tmp_path / "features")
    bundle = write_bundle(tmp_path / "bundle", features, ())
    (tmp_path / "feed.csv").write_text("ad,change\n1,pause\n99,\n")
    changes = read_changes(tmp_path / "feed.csv", DeltaState.of(bundle))
    assert changes.ids.to_pylist() == [{"item_id": 1, "change": "pause"}]
    assert changes.raw.to_pylist() == [{"ad": 99}]
