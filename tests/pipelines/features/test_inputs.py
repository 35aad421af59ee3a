"""Inputs: after any changed byte of any table the features are out of date, and no earlier run serves as it is."""

from __future__ import annotations

import gzip
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.features.planning import Inputs
from tests.pipelines.conftest import EVENTS, ITEMS, USERS, raw_schema, schema_of, write_rows


@settings(max_examples=100, deadline=None)
@given(
    table=st.sampled_from(["events", "items", "users"]),
    suffix=st.sampled_from(["parquet", "csv", "tsv", "jsonl", "csv.gz"]),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_a_changed_byte_makes_the_table_another(
    tmp_path_factory: pytest.TempPathFactory, table: str, suffix: str, place: float, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    write_rows(folder, events=EVENTS, items=ITEMS, users=USERS)
    path = folder / f"{table}.{suffix}"
    content = (folder / f"{table}.parquet").read_bytes()
    if suffix != "parquet":
        (folder / f"{table}.parquet").unlink()
        content = b"user,item\n" + b"1,2\n" * 5_000
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    schema = schema_of(raw_schema(folder))
    before = Inputs.find(schema)
    changed, state = bytearray(path.read_bytes()), path.stat()
    changed[int(place * len(changed))] ^= flip
    path.write_bytes(changed)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = Inputs.find(schema)
    assert {name for name in before.fingerprints() if before.fingerprints()[name] != after.fingerprints()[name]} == {
        table
    }
    assert {file.fingerprint for file in before.by_table[table]}.isdisjoint(
        file.fingerprint for file in after.by_table[table]
    )
