"""The job that answers every user: it writes what the retriever returns for each."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
    with pytest.raises(ArtifactError, match="expected a table of users, found none"):
        candidates_job.run(str(registry), tmp_path / "out", users=tmp_path / "nobody.parquet")
    assert not (tmp_path / "out").exists()
