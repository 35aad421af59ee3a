"""Files are found as people name them; what is left out, and what is there in place of what was named, is said."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import UsersTable
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.readers import plan_shards, read_shard


def source(path: str | Path | list[str], **keys: str) -> UsersTable:
    return UsersTable.model_validate({"path": path if isinstance(path, list) else str(path), "user_id": "u", **keys})


def found(path: str | Path | list[str], **keys: str) -> list[SourceFile]:
    return list(find_files(source(path, **keys), "users"))


def put(folder: Path, *names: str, content: bytes = b"u\n1\n") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture(params=["local", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A prefix of paths, and the folder whose files are there."""
    return ("" if request.param == "local" else "memory://"), tmp_path


def there(base: tuple[str, Path], *names: str) -> str:
    """Writes files below the folder, on its file system, and returns the folder's path or URL."""
    prefix, folder = base
    if not prefix:
        put(folder, *names)
        return str(folder)
    fs = fsspec.filesystem("memory")
    for name in names:
        fs.pipe_file(f"{folder}/{name}", b"u\n1\n")
    return f"memory://{folder}"


def names_of(files: list[SourceFile], root: str) -> list[str]:
    return [file.url.split(root.removeprefix("memory://"))[-1].lstrip("/") for file in files]


def test_a_folder_means_its_tables_and_those_below(base: tuple[str, Path]) -> None:
    root = there(
        base, "b.csv", "a/x.jsonl.gz", "a/deep/er/y.TSV", "z.parquet", "README.md", "_SUCCESS", "._x.parquet",
        "_delta_log/0.csv", ".ipynb_checkpoints/b.csv", "a/.hidden/c.csv", "a/_tmp/c.csv", "c.json", "d.csv.crc",
    )  # fmt: skip
    files = found(root)
    assert names_of(files, root) == ["a/deep/er/y.TSV", "a/x.jsonl.gz", "b.csv", "z.parquet"]
    assert [(file.format, file.compression) for file in files] == [
        ("tsv", None), ("jsonl", "gzip"), ("csv", None), ("parquet", None)
    ]  # fmt: skip


def test_hidden_names_above_the_path_given_do_not_matter(base: tuple[str, Path]) -> None:
    root = there(base, ".cache/_run/a.csv")
    assert names_of(found(f"{root}/.cache/_run"), root) == [".cache/_run/a.csv"]
    assert names_of(found(f"{root}/.cache/_run/*.csv"), root) == [".cache/_run/a.csv"]


def test_what_exists_is_no_pattern(base: tuple[str, Path]) -> None:
    root = there(base, "shop [prod]/a.csv", "shop p/b.csv", "what?.csv", "whats.csv")
    assert names_of(found(f"{root}/shop [prod]"), root) == ["shop [prod]/a.csv"]
    assert names_of(found(f"{root}/shop [prod]/a.csv"), root) == ["shop [prod]/a.csv"]
    assert names_of(found(f"{root}/what?.csv"), root) == ["what?.csv"]
    assert names_of(found(f"{root}/shop [p]"), root) == ["shop p/b.csv"]


def test_a_pattern_takes_files_and_folders_and_hidden_names_only_by_name(base: tuple[str, Path]) -> None:
    root = there(base, "e/dt=1/a.csv", "e/dt=2/b.csv", "e/_x.csv", "e/y.csv")
    assert names_of(found(f"{root}/e/*"), root) == ["e/dt=1/a.csv", "e/dt=2/b.csv", "e/y.csv"]
    assert names_of(found(f"{root}/e/_*.csv"), root) == ["e/_x.csv"]
    assert [file.partitions for file in found(f"{root}/e/dt=*/*.csv")] == [(("dt", "1"),), (("dt", "2"),)]


def test_hive_folders_give_text_in_every_format(tmp_path: Path) -> None:
    put(tmp_path, "country=DE/day=2026-01-01/a.csv", "country=a%2Fb/day=__HIVE_DEFAULT_PARTITION__/a.csv")
    put(tmp_path, "country=FR/day=x/a.jsonl", content=b'{"u": 2}')
    where = source(tmp_path)
    rows = [
        row
        for shard in plan_shards(find_files(where, "users"), where, "users")
        for batch in read_shard(shard, where, ["u", "country", "day"], {})
        for row in batch.table.to_pylist()
    ]
    assert rows == [
        {"u": "1", "country": "DE", "day": "2026-01-01"},
        {"u": 2, "country": "FR", "day": "x"},
        {"u": "1", "country": "a/b", "day": None},
    ]


def test_a_declared_format_reads_every_file_and_keeps_the_compression(tmp_path: Path) -> None:
    put(tmp_path, "part-0", "x.txt", "y.csv.gz", ".part-0.crc")
    assert [(Path(file.url).name, file.format, file.compression) for file in found(tmp_path, format="tsv")] == [
        ("part-0", "tsv", None), ("x.txt", "tsv", None), ("y.csv.gz", "tsv", "gzip")
    ]  # fmt: skip


def test_a_file_that_several_paths_name_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "b.csv")
    assert len(found([str(tmp_path), f"file://{tmp_path}/a.csv", f"{tmp_path}/*.csv"])) == 2


def test_errors_say_what_was_there(tmp_path: Path) -> None:
    put(tmp_path, "orders.csv", "notes.txt", "only/readme.md", "packed/a.csv.zip")
    with pytest.raises(
        SchemaError, match=r"expected at least one file at .*order.csv, found none; in .* there is notes"
    ):
        found(tmp_path / "order.csv")
    with pytest.raises(SchemaError, match=r"expected Parquet, CSV, .* in the folder .*only or below, found readme.md"):
        found(tmp_path / "only")
    with pytest.raises(SchemaError, match=r"notes.txt has no known suffix.*format = "):
        found(tmp_path / "notes.txt")
    with pytest.raises(SchemaError, match=r"a.csv.zip is packed in a way that cannot be read. Unpack it"):
        found(tmp_path / "packed")
    with pytest.raises(SchemaError, match=r"nosuch://x cannot be reached"):
        found("nosuch://x")


def test_linked_folders_are_read_and_each_folder_once(tmp_path: Path) -> None:
    """``_old`` is a hidden link to what ``day`` holds; ``loop`` leads back to the folder itself."""
    for folder in ("table/day", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.csv").write_text("user\n1\n")
    (tmp_path / "table" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "table" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "table" / "_old").symlink_to(tmp_path / "table" / "day")
    (tmp_path / "table" / "day" / "loop").symlink_to(tmp_path / "table")
    assert sorted(Path(file.url).resolve() for file in found(tmp_path / "table")) == [
        tmp_path.resolve() / "elsewhere" / "a.csv",
        tmp_path.resolve() / "table" / "day" / "a.csv",
    ]
