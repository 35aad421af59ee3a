"""The job that answers every user: it writes what the retriever returns for each."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.registry import delta_writer
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import open_artifact
from tests.index.serving_bundles import write_bundle
from towerline.jobs import candidates as candidates_job

ITEMS = 300


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("candidates")
    Registry(root / "registry").publish(write_bundle(root / "bundle", items=ITEMS))
    return root / "registry"


def people(n: int) -> pa.Table:
    return pa.table(
        {
            "user_id": [f"p{user}" for user in range(n)],
            "country": ["US" if user % 2 else None for user in range(n)],
            "history": [[1000 + 3 * (user % ITEMS), 1003] if user % 3 else None for user in range(n)],
        }
    )


def test_every_user_gets_what_the_retriever_gives(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_job, "_ELEMENT_USERS", 40)
    monkeypatch.setattr(candidates_job, "_BATCH_USERS", 16)
    pq.write_table(people(90), tmp_path / "people.parquet")
    out = candidates_job.run(str(registry), tmp_path / "out", k=7, users=tmp_path / "people.parquet")
    files = sorted((out / "candidates").iterdir())
    assert [file.name for file in files] == [f"part-{part:05d}-of-00003.parquet" for part in range(3)]
    written = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    retriever = Retriever.open(registry)
    expected = [
        (user["user_id"], rank, item_id)
        for user in people(90).to_pylist()
        for rank, item_id in enumerate(
            retriever.retrieve({key: value for key, value in user.items() if value is not None}, 7).item_ids.tolist(), 1
        )
    ]
    assert [(row["user_id"], row["rank"], row["item_id"]) for row in written] == expected
    manifest = open_artifact(out, kind="candidates").manifest
    assert manifest.facts["users"] == 90
    assert manifest.config["version"] == retriever.version


def test_the_bundles_own_users_are_the_default(registry: Path, tmp_path: Path) -> None:
    out = candidates_job.run(str(registry), tmp_path / "out", k=5)
    written = pq.read_table(out / "candidates")
    assert sorted(set(written["user_id"].to_pylist())) == ["u0", "u1", "u2"]
    assert written.num_rows == 15


def test_a_table_without_user_id_is_refused(registry: Path, tmp_path: Path) -> None:
    pq.write_table(people(3).drop_columns("user_id"), tmp_path / "people.parquet")
    with pytest.raises(SchemaError, match="expected a column user_id, found country, history"):
        candidates_job.run(str(registry), tmp_path / "out", users=tmp_path / "people.parquet")
    with pytest.raises(SchemaError, match="found none"):
        candidates_job.run(str(registry), tmp_path / "out", users=tmp_path / "nobody.parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text_ids", [False, True])
def test_where_every_ad_is_paused_nobody_has_a_candidate(tmp_path: Path, text_ids: bool) -> None:
    bundle = write_bundle(tmp_path / "bundle", items=20, text_ids=text_ids)
    Registry(tmp_path / "registry").publish(bundle)
    ids = Retriever.open(bundle).bundle.vocabulary.item_ids
    delta_writer.apply(tmp_path / "registry", pa.table({"item_id": ids, "change": ["pause"] * len(ids)}))
    out = candidates_job.run(str(tmp_path / "registry"), tmp_path / "out", k=5)
    written = pq.read_table(out / "candidates")
    assert len(written) == 0
    assert written.schema.field("item_id").type == ids.type


NUMBERS = [5, -7, 2**63 - 1, 10**18 + 1]


@pytest.fixture(scope="module")
def by_number(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose users are integers; the last one has no history and no features."""
    root = tmp_path_factory.mktemp("numbers")
    at = datetime.datetime(2025, 2, 20, tzinfo=datetime.UTC)
    users = pa.table(
        {
            "user_id": NUMBERS,
            "country": ["US", "CA", "DE", None],
            "age": pa.array([31, None, 44, None], pa.int64()),
            "interests": [["toys"], None, [], None],
            "history": pa.array([[1000, 1030, 1060], [1003], None, None], pa.list_(pa.int64())),
            "history_action": [["click", "purchase", "click"], ["click"], None, None],
            "history_time": pa.array([[at] * 3, [at], None, None], pa.list_(pa.timestamp("us", tz="UTC"))),
            "time": pa.array([at] * 4, pa.timestamp("us", tz="UTC")),
        }
    )
    Registry(root / "registry").publish(write_bundle(root / "bundle", items=ITEMS, users=users))
    return root / "registry"


def answered(registry: Path, out: Path, users: Any) -> tuple[dict[Any, list[dict[str, Any]]], dict[str, Any]]:
    """Rows by user, and the manifest's facts."""
    done = candidates_job.run(str(registry), out, k=6, users=users)
    rows: dict[Any, list[dict[str, Any]]] = {}
    for row in pq.read_table(done / "candidates").to_pylist():
        rows.setdefault(row["user_id"], []).append(row)
    assert [file.name for file in done.iterdir() if file.name.startswith(".")] == []
    return rows, dict(open_artifact(done, kind="candidates").manifest.facts)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.csv", "user_id\n5\n-7\n9223372036854775807\n1000000000000000001\n404\n"),
        ("ids.csv", "user_id,signed_up\n5.0,x\n-7,y\n9223372036854775807,\n1000000000000000001,\n404,\n"),
        ("ids.jsonl", "".join(f'{{"user_id": {form}}}\n' for form in (5, '"-7"', 2**63 - 1, 10**18 + 1, 404))),
        ("ids.parquet", pa.table({"user_id": [*map(str, NUMBERS), "404"]})),
        ("frame", pa.table({"user_id": pa.array([*NUMBERS, 404]).dictionary_encode()})),
    ],
)
def test_ids_alone_are_answered_with_the_stored_records(
    by_number: Path, tmp_path: Path, name: str, content: Any
) -> None:
    users: Any = tmp_path / name
    if name == "frame":
        users = content
    elif name.endswith("parquet"):
        pq.write_table(content, users)
    else:
        users.write_text(content)
    rows, facts = answered(by_number, tmp_path / "out", users)
    retriever = Retriever.open(by_number)
    assert list(rows) == [*NUMBERS, 404]
    for user_id in rows:
        expected = retriever.retrieve_by_id(user_id, 6)
        found = rows[user_id]
        assert [row["item_id"] for row in found] == expected.item_ids.tolist()
        assert [row["source"] for row in found] == expected.sources.tolist()
        assert {row["cold_start"] for row in found} == {expected.cold_start}
        assert {row["version"] for row in found} == {retriever.version}
        assert {row["known"] for row in found} == {user_id != 404}
    counted = {name: facts[name] for name in ("users", "known", "unknown", "cold")}
    # Without history are the two last known users and the unknown one.
    assert counted == {"users": 5, "known": 4, "unknown": 1, "cold": 3}


def test_what_a_table_gives_replaces_what_is_stored(by_number: Path, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(
        "user_id,country,history,history_time\n"
        '5,DE,,\n-7,,"[1060, 1090]","[""2025-02-01"", ""2025-02-19T12:00:00Z""]"\n404,US,[1000],\n'
    )
    rows, facts = answered(by_number, tmp_path / "out", tmp_path / "users.csv")
    assert (facts["known"], facts["unknown"]) == (2, 1)
    retriever = Retriever.open(by_number)
    at = datetime.datetime(2025, 2, 20, tzinfo=datetime.UTC)
    stored = {
        "country": "DE",
        "age": 31,
        "interests": ["toys"],
        "history": [1000, 1030, 1060],
        "history_action": ["click", "purchase", "click"],
        "history_time": [at] * 3,
        "time": at,
    }
    times = [datetime.datetime(2025, 2, 1), datetime.datetime(2025, 2, 19, 12)]
    # A history that is given brings its times and actions, and the request is now.
    fresh = {"country": "CA", "history": [1060, 1090], "history_time": times}
    stranger = {"country": "US", "history": [1000]}
    for user_id, record in ((5, stored), (-7, fresh), (404, stranger)):
        expected = retriever.retrieve(record, 6)
        assert [row["item_id"] for row in rows[user_id]] == expected.item_ids.tolist()


def test_rows_that_cannot_be_read_are_named_and_nobody_is_answered(by_number: Path, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(
        "user_id,history,history_time,age\n5,,,x\nabc,,,\n,,,\n5.5,,,\n5,[1000],[1],\n5,[a],,\n5\n"
    )
    with pytest.raises(SchemaError) as refused:
        candidates_job.run(str(by_number), tmp_path / "out", users=tmp_path / "users.csv")
    text = str(refused.value)
    assert text.splitlines()[0].endswith("users.csv: 7 rows cannot be read, so nobody was answered. Correct them.")
    assert "type:user_id, 2 rows, the first:" in text
    assert "row 1, column 'user_id': expected an integer" in text
    assert "row 2, column 'user_id': expected an id, got None" in text
    assert "row 0, column 'age': expected a finite number, got 'x'" in text
    assert "row 4, column 'history_time': expected a list of moments" in text
    assert "row 5, column 'history'" in text
    assert "malformed:line, 1 row" in text
    assert not (tmp_path / "out").exists()


def test_a_misspelt_column_and_ids_without_stored_users_are_refused(by_number: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="column 'histroy' is unknown; did you mean 'history'"):
        candidates_job.run(str(by_number), tmp_path / "out", users=pa.table({"user_id": [5], "histroy": [[1000]]}))
    bare = write_bundle(tmp_path / "bundle", items=20, users=False)
    Registry(tmp_path / "registry").publish(bare)
    with pytest.raises(ArtifactError, match="holds ids alone, and the version was built without users"):
        candidates_job.run(str(tmp_path / "registry"), tmp_path / "out", users=pa.table({"user_id": ["a"]}))
