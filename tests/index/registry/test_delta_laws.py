"""Laws of changes: what a version's state is after any history, next to a model that is a few dictionaries.

The model knows rows of the items table, and recomputes vectors by NumPy; it shares no code with the fold.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from index.building import compaction
from index.inference.item_embedder import ItemEmbedder
from index.inference.item_tower import LiteItemTower
from index.registry import delta_writer
from index.registry.bundle import Bundle
from index.registry.change_feed import read_changes
from index.registry.delta_entry import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, Entry
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from index.registry.upserts import same
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import ColumnRule
from tests.forks import exit_code, forked
from tests.index.registry.ad_world import COLUMNS, ITEMS, World, ad, first_rows, table_of, tree_settings, write_world

IDS = [10 * item for item in range(1, ITEMS + 1)]
NEW = [5, 15, 1005]
TOUCHED = [*IDS[:6], IDS[-1], *NEW]
COUNTS = ("seen_7d", "seen_28d")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world") / "world")


def later(bundle: Bundle, delta_sequence: int) -> Bundle:
    """The bundle, as if its tables had been read after that entry."""
    facts = {**bundle.manifest.facts, "delta_sequence": delta_sequence}
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"facts": facts}))


@dataclass
class Model:
    """What each version must be: ads by id, whether they live, their train events, log values, and who is paused."""

    ads: dict[int, dict[str, Any]]
    frequency: dict[int, int]
    log_value: dict[int, float]
    least: float
    mean: float
    dead: set[int] = field(default_factory=set)
    paused: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, world: World) -> Model:
        rows = first_rows(world)
        bids = {item: row["bid"] for item, row in rows.items()}
        least = math.log(min(bid for bid in bids.values() if bid))
        logs = {item: math.log(bid) if bid else least for item, bid in bids.items()}
        vocabulary = world.bundle.vocabulary
        frequency = dict(zip(vocabulary.item_ids.to_pylist(), vocabulary.item_frequency.tolist(), strict=True))
        return cls(rows, frequency, logs, least, sum(logs.values()) / len(logs))

    def upsert(self, item: int, said: dict[str, Any]) -> None:
        if item not in self.ads:
            self.ads[item] = {"ad": item, **dict.fromkeys(COLUMNS), **dict.fromkeys(COUNTS)}
            self.frequency[item], self.log_value[item] = 0, self.mean
            new = True
        else:
            new = False
        if "bid" in said and (new or said["bid"] != self.ads[item]["bid"]):
            self.log_value[item] = math.log(said["bid"]) if said["bid"] else self.least
        self.ads[item] = {**self.ads[item], **said}
        self.dead.discard(item)

    def apply(self, feed: Feed, *, catalogue: bool) -> None:
        for item, change in feed.changes.items():
            if change == "upsert" and catalogue:
                self.upsert(item, feed.said[item])
            elif change == "remove" and catalogue and item in self.ads:
                self.dead.add(item)
            elif change == "pause":
                self.paused.add(item)
            elif change == "resume":
                self.paused.discard(item)


@dataclass(frozen=True)
class Feed:
    """A change feed. changes: by item. said: what the upserts set. keyed: written as JSONL, each row with its keys."""

    changes: dict[int, str]
    said: dict[int, dict[str, Any]]
    keyed: bool

    def table(self, folder: Path) -> Any:
        rows = [{"ad": item, "change": change, **self.said.get(item, {})} for item, change in self.changes.items()]
        if self.keyed:
            (folder / "feed.jsonl").write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
            return folder / "feed.jsonl"
        columns = tuple(dict.fromkeys(name for said in self.said.values() for name in said))
        table = table_of(rows, columns)
        return table.append_column("change", pa.array([row["change"] for row in rows], pa.string()))


@st.composite
def feeds(draw: st.DrawFn) -> Feed:
    """Feeds over a few known and new ads. A new ad of a table sets its columns, of JSONL its keys; some set what is
    there already (seed 0 of a known ad)."""
    items = draw(st.lists(st.sampled_from(TOUCHED), unique=True, min_size=1, max_size=4))
    changes = {item: draw(st.sampled_from(["upsert", "upsert", "remove", "pause", "resume"])) for item in items}
    keyed = draw(st.booleans())
    names = st.lists(st.sampled_from(COLUMNS), unique=True)
    columns = draw(names)
    said: dict[int, dict[str, Any]] = {}
    for item in (item for item, change in changes.items() if change == "upsert"):
        row = ad(item, draw(st.integers(0, 3)))
        said[item] = {name: row[name] for name in (draw(names) if keyed else columns)}
    return Feed(changes, said, keyed)


def entries_of(state: DeltaState, drawn: list[Feed]) -> list[Entry]:
    """The feeds as they would be written: read and checked against the live version's state."""
    entries: list[Entry] = []
    embedder = ItemEmbedder(state.bundle)
    with tempfile.TemporaryDirectory() as folder:
        for number, feed in enumerate(drawn, start=1):
            changes = read_changes(feed.table(Path(folder)), state, lambda: set(TOUCHED))
            entries.append(Entry(number, number, changes.rows()))
            state = state.after(entries[-1:], embedder)
    return entries


def check(world: World, state: DeltaState, model: Model) -> None:
    """That the state is the model's, ad by ad."""
    ids = state.item_ids().to_pylist()
    shown = [row for row, gone in enumerate(state.gone) if not gone]
    assert sorted(ids[row] for row in shown) == sorted(set(model.ads) - model.dead)
    assert state.paused_ids == model.paused
    assert {ids[row] for row in shown if state.paused[row]} == model.paused & (set(model.ads) - model.dead)
    known = state.known(np.array(shown))
    items, features = known.items.to_pylist(), known.features.to_pylist()
    wanted = [model.ads[ids[row]] for row in shown]
    for own, raw, expected in zip(items, features, wanted, strict=True):
        assert own == {name: expected["ad" if name == "item_id" else name] for name in own}
        assert raw == {name: expected[name] for name in raw}
    vectors = np.concatenate([state.bundle.vectors, state.fresh_vectors])[shown]
    np.testing.assert_allclose(vectors, world.vectors(wanted), atol=1e-4)
    assert state.frequency[shown].tolist() == [model.frequency[ids[row]] for row in shown]
    assert state.log_values is not None
    logs = [model.log_value[ids[row]] for row in shown]
    np.testing.assert_allclose(state.log_values[shown], logs, atol=1e-5)


SLOWLY = hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@given(
    st.lists(feeds(), min_size=1, max_size=7),
    st.integers(0, 7),
    st.lists(st.integers(1, 4), max_size=5),
    st.sets(st.integers(1, 7), max_size=2),
)
@SLOWLY
def test_a_version_is_the_fold_of_the_log_after_its_tables_at_any_pace(
    world: World, drawn: list[Feed], delta_sequence: int, paces: list[int], damaged: set[int]
) -> None:
    """Catalogue changes after the version's own number, pauses of the whole log; read in groups of any size. Damaged
    entries are left out."""
    entries = [one for one in entries_of(DeltaState.of(world.bundle), drawn) if one.sequence not in damaged]
    bundle, model = later(world.bundle, delta_sequence), Model.of(world)
    for number, feed in enumerate(drawn, start=1):
        if number not in damaged:
            model.apply(feed, catalogue=number > delta_sequence)
    embedder = ItemEmbedder(bundle)
    at_once = DeltaState.of(bundle).after(entries, embedder)
    check(world, at_once, model)
    state, done = DeltaState.of(bundle), 0
    for pace in [*paces, len(entries)]:
        # The last entry before is read once more: it changes nothing.
        state = state.after(entries[max(0, done - 1) : done + pace], embedder)
        done += pace
    assert state.item_ids().equals(at_once.item_ids())
    assert state.gone.tolist() == at_once.gone.tolist()
    assert state.paused.tolist() == at_once.paused.tolist()
    np.testing.assert_allclose(state.fresh_vectors, at_once.fresh_vectors, atol=1e-6)
    check(world, state, model)


@given(st.lists(feeds(), min_size=1, max_size=5), st.lists(feeds(), max_size=4))
@hypothesis_settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
def test_a_compacted_version_is_the_same_and_goes_on_from_its_number(
    world: World, before: list[Feed], after: list[Feed]
) -> None:
    entries = entries_of(DeltaState.of(world.bundle), [*before, *after])
    state = DeltaState.of(world.bundle).after(entries[: len(before)], ItemEmbedder(world.bundle))
    model = Model.of(world)
    for feed in before:
        model.apply(feed, catalogue=True)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(compaction.write_bundle(state, "v", Path(folder) / "bundle"))
        assert bundle.delta_sequence == len(before)
        assert bundle.as_of_us == world.bundle.as_of_us
        compacted = DeltaState.of(bundle).after(entries[: len(before)], ItemEmbedder(bundle))
        assert compacted.num_fresh == 0
        check(world, compacted, model)
        # A removed ad is unknown to the compacted version: an upsert of it is one of a new ad. What counts as the
        # smallest and the mean value are those of the new catalogue.
        for item in model.dead:
            del model.ads[item]
        logs = [model.log_value[item] for item in model.ads]
        model = dataclasses.replace(model, dead=set(), mean=sum(logs) / len(logs), least=min(logs))
        for feed in after:
            model.apply(feed, catalogue=True)
        check(world, compacted.after(entries[len(before) :], ItemEmbedder(bundle)), model)


def test_a_compacted_version_keeps_its_backtest_as_it_is(world: World, tmp_path: Path) -> None:
    inner = world.root / "bundle"
    outer = Bundle.open(world.bundle_with("night", tree_settings(), backtest=inner))
    assert outer.backtest is not None
    changes = read_changes(
        pa.table({"ad": [10, 20], "change": ["remove", "upsert"], "price": [None, 0.25]}), DeltaState.of(outer)
    )
    state = DeltaState.of(outer).after([Entry(1, 0, changes.rows())], ItemEmbedder(outer))
    compacted = Bundle.open(compaction.write_bundle(state, "v", tmp_path / "compacted"))
    assert compacted.backtest is not None
    assert compacted.backtest.manifest == outer.backtest.manifest == Bundle.open(inner).manifest
    assert compacted.measured.num_items == ITEMS
    assert compacted.num_items == ITEMS - 1
    assert compacted.manifest.facts["measured_by"] == outer.manifest.facts["measured_by"]


@pytest.mark.parametrize("columns", [COLUMNS, ("price",), ("bid",), ("picture", "tags"), ()])
@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_an_upsert_that_changes_nothing_gives_no_new_row(
    world: World, tmp_path: Path, columns: tuple[str, ...], form: str
) -> None:
    rows = first_rows(world)
    said = {item: {name: rows[item][name] for name in columns} for item in IDS}
    feed = Feed(dict.fromkeys(IDS, "upsert"), said, keyed=form == "jsonl")
    state = DeltaState.of(world.bundle)
    changes = read_changes(feed.table(tmp_path), state)
    after = state.after([Entry(1, 0, changes.rows())], ItemEmbedder(world.bundle))
    assert after.num_fresh == 0
    assert not after.gone.any()
    # A removed ad lives again in its own row.
    ids = pa.array(IDS[:2], pa.int64())
    removal = pa.table({"ad": ids, "change": ["remove"] * 2})
    removed = after.after([Entry(2, 0, read_changes(removal, after).rows())], ItemEmbedder(world.bundle))
    assert removed.gone.sum() == 2
    again = removed.after([Entry(3, 0, changes.rows())], ItemEmbedder(world.bundle))
    assert (again.num_fresh, int(again.gone.sum())) == (0, 0)


def fold(world: World, rows: pa.Table) -> DeltaState:
    """The state after one entry with these rows."""
    return DeltaState.of(world.bundle).after([Entry(1, 0, rows)], ItemEmbedder(world.bundle))


def entry_rows(ids: pa.Array, changes: list[str], said: list[list[str]], **columns: pa.Array) -> pa.Table:
    rows = {ID_COLUMN: ids, CHANGE_COLUMN: pa.array(changes), SAID_COLUMN: pa.array(said, pa.list_(pa.string()))}
    return pa.table({**rows, **columns})


def test_ids_and_columns_of_another_versions_types_are_converted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Text ids and a price as text. An id that no integer is, is not of this version; a price that is no number leaves
    the ad as it was."""
    ids = pa.array(["10", "20", "abc", "30", "x"])
    said = [["price"], ["price"], ["price"], [], []]
    prices = pa.array(["1.5", "cheap", "2", None, None])
    rows = entry_rows(ids, ["upsert", "upsert", "upsert", "pause", "pause"], said, price=prices)
    state = fold(world, rows)
    assert state.fresh_items["item_id"].to_pylist() == [10]
    assert state.known(np.array([ITEMS])).features["price"].to_pylist() == [1.5]
    assert not state.gone[1]
    assert state.paused_ids == {30}
    assert "1 ads cannot be embedded here and stay as they were, the first is 20" in caplog.text


def test_columns_that_a_version_does_not_have_are_left_alone(world: World) -> None:
    rows = entry_rows(pa.array([10]), ["upsert"], [["material"]], material=pa.array(["wool"]))
    assert fold(world, rows).num_fresh == 0


def test_an_ad_whose_vector_is_wrong_stays_as_it_was_and_a_feed_with_it_is_refused(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A picture of another length, as a version with larger pictures may have written it."""
    pictures = pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]], pa.list_(pa.float32()))
    rows = entry_rows(pa.array([10, 20]), ["upsert", "upsert"], [["picture"], ["picture"]], picture=pictures)
    state = fold(world, rows)
    assert state.fresh_items["item_id"].to_pylist() == [20]
    assert not state.gone[0]
    assert "the first is 10" in caplog.text
    registry = Registry(tmp_path / "registry")
    registry.publish(world.root / "bundle")
    broken = mock.patch.object(LiteItemTower, "vectors", return_value=np.full((1, 8), np.nan, np.float32))
    with broken, pytest.raises(SchemaError, match=r"1 ads cannot be embedded .* nothing was written.* is 10: "):
        delta_writer.apply(registry.url, pa.table({"ad": [10], "price": [3.75]}))
    assert DeltaLog(registry.store).last() == 0


def test_ads_that_only_the_log_names_may_be_paused_and_resumed(world: World, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(world.root / "bundle")
    log = DeltaLog(registry.store)
    # As a newer version would have known it: this one cannot embed it.
    wrong = pa.array([[1.0]], pa.list_(pa.float32()))
    log.append(entry_rows(pa.array([777]), ["upsert"], [["picture"]], picture=wrong))
    for change in ("pause", "resume", "remove"):
        delta_writer.apply(registry.url, pa.table({"ad": [777], "change": [change]}))
    with pytest.raises(SchemaError, match=r"unknown:ad.* an item of the live version, got 778"):
        delta_writer.apply(registry.url, pa.table({"ad": [778], "change": ["pause"]}))
    assert log.last() == 4


def test_a_version_older_than_what_is_left_of_the_log_is_named(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(world.root / "bundle")
    log = DeltaLog(registry.store)
    delta_writer.apply(registry.url, pa.table({"ad": [10, 20], "change": ["pause", "remove"]}))
    delta_writer.apply(registry.url, pa.table({"ad": [30], "change": ["pause"]}))
    log.prune(1, 2**62)
    state = DeltaState.opened(world.bundle, log, ItemEmbedder(world.bundle))
    assert (state.sequence, state.paused_ids, int(state.gone.sum())) == (2, {10, 30}, 0)
    assert "needs the log's entries after 0, and those up to 1 were removed" in caplog.text
    caplog.clear()
    assert DeltaState.opened(later(world.bundle, 1), log, ItemEmbedder(world.bundle)).paused_ids == {10, 30}
    assert caplog.text == ""
    # What is left of the removed entries is in two files, of which either will do.
    (tmp_path / "registry/deltas/00000001.paused").write_bytes(b"damaged")
    assert DeltaState.opened(later(world.bundle, 1), log, ItemEmbedder(world.bundle)).paused_ids == {10, 30}


def test_a_rule_that_forbids_nulls_spares_what_a_row_of_a_known_ad_does_not_say(world: World, tmp_path: Path) -> None:
    rules = {"price": ColumnRule(nullable=False, min=0.0)}
    validation = world.bundle.schema.validation.model_copy(update={"columns": {"items": rules}})
    bundle = dataclasses.replace(world.bundle)
    vars(bundle)["schema"] = world.bundle.schema.model_copy(update={"validation": validation})
    state = DeltaState.of(bundle)
    (tmp_path / "good.jsonl").write_text('{"ad": 10, "brand": "bolt"}\n{"ad": 20, "price": 2}\n{"ad": 5, "price": 1}\n')
    changes = read_changes(tmp_path / "good.jsonl", state)
    assert changes.said.to_pylist() == [["brand"], ["price"], ["price"]]
    lines = ['{"ad": 10, "price": null}', '{"ad": 5, "brand": "bolt"}', '{"ad": 20, "price": -1}', '{"ad": 30}']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(SchemaError) as refused:
        read_changes(tmp_path / "bad.jsonl", state)
    found = str(refused.value)
    assert "3 rows cannot be applied" in found
    assert "null:price, 2 rows, the first: " in found
    assert "bad.jsonl row 0, column 'price': expected a value, got None" in found
    assert "range:price, 1 row: " in found


def test_a_csv_cell_without_a_value_is_said_and_a_column_that_is_not_there_is_not(world: World, tmp_path: Path) -> None:
    rows = first_rows(world)
    (tmp_path / "feed.csv").write_text("ad,brand,price\n10,,4.5\n20,bolt,\n")
    state = DeltaState.of(world.bundle)
    changes = read_changes(tmp_path / "feed.csv", state)
    after = state.after([Entry(1, 0, changes.rows())], ItemEmbedder(world.bundle))
    known = after.known(np.array([ITEMS, ITEMS + 1]))
    assert known.features["brand"].to_pylist() == [None, "bolt"]
    assert known.features["price"].to_pylist() == [4.5, None]
    for name in ("tags", "title", "listed", "picture", *COUNTS):
        assert known.features[name].to_pylist() == [rows[10][name], rows[20][name]]
    assert known.items["bid"].to_pylist() == [rows[10]["bid"], rows[20]["bid"]]


def test_a_forked_process_embeds_with_a_tower_of_its_own(world: World) -> None:
    embedder = ItemEmbedder(world.bundle)
    embedder.warm()
    raw = pa.table({"ad": [10], "price": [3.5]})
    expected = embedder.embed(raw).vectors
    read, write = os.pipe()
    assert exit_code(forked(lambda: os.write(write, embedder.embed(raw).vectors.tobytes()))) == 0
    np.testing.assert_allclose(np.frombuffer(os.read(read, 1 << 16), np.float32), expected[0], rtol=1e-6)


VALUES = {
    pa.int64(): st.integers(-2, 2),
    pa.float32(): st.sampled_from([0.0, 0.5, -1.0]),
    pa.string(): st.sampled_from(["", "a", "b"]),
}


@given(st.sampled_from([*VALUES, *map(pa.list_, VALUES)]), st.data())
def test_values_are_the_same_as_in_python(kind: pa.DataType, data: st.DataObject) -> None:
    one = VALUES.get(kind)
    value = st.lists(st.none() | VALUES[kind.value_type], max_size=3) if one is None else one
    pairs = data.draw(st.lists(st.tuples(st.none() | value, st.none() | value)))
    first, second = (pa.array([pair[side] for pair in pairs], kind) for side in (0, 1))
    assert same(first, second).tolist() == [left == right for left, right in pairs]
    assert same(first.slice(1), second.slice(1)).tolist() == [left == right for left, right in pairs[1:]]
