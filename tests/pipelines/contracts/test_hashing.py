"""Hashes against the xxhash library, and partitions of ids."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.hashing import fractions_of, hash_ids, partition_of


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_integers_hash_as_xxh64_of_their_eight_bytes(values: list[int]) -> None:
    expected = [xxhash.xxh64_intdigest(struct.pack("<q", value)) for value in values]
    assert hash_ids(pa.array(values, pa.int64())).tolist() == expected


@given(st.lists(st.text(max_size=12), max_size=20))
def test_texts_hash_as_xxh64_of_their_utf8(values: list[str]) -> None:
    expected = [xxhash.xxh64_intdigest(value.encode()) for value in values]
    assert hash_ids(pa.array(values, pa.string())).tolist() == expected


def test_partitions_are_even_and_do_not_depend_on_the_batch() -> None:
    ids = pa.array(np.arange(100_000) * 8, pa.int64())
    partitions = partition_of(ids, 16)
    counts = np.bincount(partitions, minlength=16)
    # 100,000 / 16 = 6,250; five standard deviations are 5 * sqrt(6250) = 395.
    assert abs(counts - 6_250).max() < 395
    assert (partition_of(ids.slice(500, 10), 16) == partitions[500:510]).all()


def test_the_same_pairs_are_drawn_in_any_batch_and_another_seed_draws_others() -> None:
    users, items = pa.array(np.arange(10_000) % 100, pa.int64()), pa.array(np.arange(10_000) // 100, pa.int64())
    drawn = fractions_of(users, items, seed=1) < 0.1
    # 1,000 of 10,000 expected, sqrt(900) = 30 a standard deviation.
    assert abs(int(drawn.sum()) - 1_000) < 150
    assert (fractions_of(users.slice(7, 5), items.slice(7, 5), 1) < 0.1).tolist() == drawn[7:12].tolist()
    assert ((fractions_of(users, items, seed=2) < 0.1) != drawn).any()
