"""The prepared encoder writes what ``encode_record`` gives, for every kind and any value, errors included."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipelines.contracts.encoding import RecordEncoder, encode_record
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers

NOW_US = 1_760_000_000_000_000

FEATURES = TypeAdapter(tuple[Feature, ...]).validate_python(
    [
        {"name": "user_id", "kind": "id"},
        {"name": "country", "kind": "categorical"},
        {"name": "shop", "kind": "categorical"},
        {"name": "bucket", "kind": "categorical", "hash_buckets": 7},
        {"name": "interests", "kind": "list", "max_length": 3},
        {"name": "query", "kind": "text", "max_length": 3},
        {"name": "age", "kind": "numeric"},
        {"name": "spend", "kind": "numeric", "scale": "log"},
        {"name": "rank", "kind": "numeric", "scale": "quantile"},
        {"name": "joined", "kind": "time_since"},
        {"name": "clicks", "kind": "count", "window_days": [1, 7]},
        {"name": "taste", "kind": "embedding", "dim": 3},
    ]
)
WORDS = FittedCodes(pa.array(["US", "CA", "true", "7"]), np.arange(4))
FITTED = {
    "user_id": FittedCodes(pa.array([7, 11, 2**40]), np.arange(3)),
    "country": WORDS,
    "shop": FittedCodes(pa.array([7, 1]), np.arange(2)),
    "bucket": FittedCodes(pa.array([], pa.string()), np.zeros(0, np.int64), 7),
    "interests": WORDS,
    "query": FittedCodes(pa.array(["us", "red"]), np.arange(2)),
    "age": FittedNumbers("standard", 40.0, 12.0),
    "spend": FittedNumbers("log", 2.0, 0.0),
    "rank": FittedNumbers("quantile", quantiles=np.array([0.0, 1.0, 1.0, 5.0])),
    "joined": FittedNumbers("log", 1.0, 2.0),
    "clicks": FittedNumbers("log", 0.5, 1.5),
}
NUMBERS = st.one_of(st.integers(-(2**60), 2**60), st.floats(), st.booleans(), st.sampled_from([7, 1, 11, 2**40]))
TEXTS = st.one_of(st.sampled_from(["US", "CA", "7", "true", "x", "Red us", ""]), st.text(max_size=5))
ANYTHING = st.one_of(st.none(), NUMBERS, TEXTS, st.lists(st.one_of(st.none(), TEXTS), max_size=5), st.just({}))
TIMES = st.datetimes(datetime.datetime(1985, 1, 1), datetime.datetime(2030, 1, 1))
MOMENTS = st.one_of(ANYTHING, TIMES, TIMES.map(lambda time: time.replace(tzinfo=datetime.UTC)))
VECTORS = st.one_of(
    ANYTHING,
    st.lists(st.floats(width=32), max_size=4),
    st.lists(st.floats(width=32), min_size=3, max_size=3).map(lambda values: np.array(values, np.float32)),
)
VALUES = {"joined": MOMENTS, "taste": VECTORS}


def outcome(work: Any) -> Any:
    try:
        return work()
    except SchemaError as err:
        return str(err)


@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_the_prepared_encoder_equals_encode_record(data: st.DataObject) -> None:
    for feature in FEATURES:
        columns = ["clicks_1d", "clicks_7d"] if feature.kind == "count" else [feature.name]
        record = {column: data.draw(VALUES.get(column, ANYTHING)) for column in columns}
        encoder = RecordEncoder((feature,), FITTED)
        target = np.full((1, *feature.input_shape), 9, feature.input_dtype)

        def written(encoder: RecordEncoder = encoder, target: np.ndarray = target, record: Any = record) -> np.ndarray:
            encoder.writers[0](target, record, NOW_US)
            return target

        expected = outcome(
            lambda feature=feature, record=record: encode_record((feature,), FITTED, record, as_of_us=NOW_US)[
                feature.name
            ]
        )
        got = outcome(written)
        if isinstance(expected, str):
            assert got == expected
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
