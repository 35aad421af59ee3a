"""Moments of requests: every form of a moment reads as the same microsecond, and what has no unit is refused."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.inference.request_times import MomentReader
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.errors import SchemaError

UTC = datetime.UTC
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
READER = MomentReader(ColumnType(type="timestamp"), "at")
MICROSECOND = datetime.timedelta(microseconds=1)

moments = st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2099, 12, 31, 23, 59, 59, 999_999)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)
# Each form of an aware moment, to the microsecond.
FORMS: dict[str, Callable[[datetime.datetime], Any]] = {
    "datetime": lambda moment: moment,
    "naive datetime": lambda moment: moment.replace(tzinfo=None),
    "another zone": lambda moment: moment.astimezone(BERLIN),
    "text": lambda moment: moment.isoformat(),
    "text with Z": lambda moment: moment.replace(tzinfo=None).isoformat(" ") + "Z",
    "naive text": lambda moment: moment.replace(tzinfo=None).isoformat(),
    "offset text": lambda moment: moment.astimezone(datetime.timezone(datetime.timedelta(hours=5.5))).isoformat(),
    "numpy": lambda moment: np.datetime64(moment.replace(tzinfo=None), "us"),
    "pandas": pd.Timestamp,
    "arrow": lambda moment: pa.scalar(moment, pa.timestamp("us", tz="America/New_York")),
}


@given(st.lists(moments, min_size=1, max_size=5), st.data())
def test_every_form_is_the_same_microsecond(given_moments: list[datetime.datetime], data: st.DataObject) -> None:
    expected = [(moment - EPOCH) // MICROSECOND for moment in given_moments]
    names = st.sampled_from(sorted(FORMS))
    same = FORMS[data.draw(names)]
    mixed = [FORMS[data.draw(names)](moment) for moment in given_moments]
    plain = [moment.replace(tzinfo=None) for moment in given_moments]
    for values in (
        [same(moment) for moment in given_moments],
        mixed,
        np.array(plain, "datetime64[us]"),
        pa.array(given_moments, pa.timestamp("us", tz="UTC")),
        pa.array(plain, pa.timestamp("us")),
        pd.Series(given_moments),
    ):
        assert READER.many(values, "history_time").tolist() == expected
    assert [READER.one(value, "time") for value in mixed] == expected


@given(moments, st.sampled_from(["s", "ms", "us", "ns"]))
def test_an_integer_is_read_in_its_declared_unit(moment: datetime.datetime, unit: str) -> None:
    reader = MomentReader(ColumnType(type="timestamp", unit=unit), "at")  # type: ignore[arg-type]
    us = (moment - EPOCH) // MICROSECOND
    per_us = {"s": 1_000_000, "ms": 1_000, "us": 1}.get(unit)
    number = us * 1_000 + 999 if per_us is None else us // per_us
    expected = us if per_us is None else us // per_us * per_us
    assert reader.one(number, "time") == expected
    for values in ([number], np.array([number]), pa.array([number])):
        assert reader.many(values, "history_time").tolist() == [expected]


def test_a_moment_without_a_zone_is_in_the_declared_one() -> None:
    reader = MomentReader(ColumnType(type="timestamp", timezone="Europe/Berlin"), "at")
    noon = datetime.datetime(2026, 7, 1, 12)
    expected = (datetime.datetime(2026, 7, 1, 10, tzinfo=UTC) - EPOCH) // MICROSECOND  # Summer time.
    for value in (noon, "2026-07-01T12:00:00", np.datetime64(noon), pd.Timestamp(noon), noon.replace(tzinfo=BERLIN)):
        assert reader.one(value, "time") == expected
        assert reader.many([value, value], "history_time").tolist() == [expected, expected]
    mixed = [noon, datetime.datetime(2026, 7, 1, 10, tzinfo=UTC)]
    for values in (np.array([noon], "datetime64[us]"), pa.array([noon]), mixed, mixed[::-1], pd.Series([noon])):
        assert set(reader.many(values, "history_time").tolist()) == {expected}


@pytest.mark.parametrize("value", [1_700_000_000, 1_700_000_000_000, np.int64(1_700_000_000_000_000), 1.7e9])
def test_an_integer_without_a_unit_is_refused_with_the_line_to_write(value: Any) -> None:
    line = r'time.*: .*write `at = \{ type = "timestamp", unit = "ms" \}` in \[tables\.events\.types\]'
    with pytest.raises(SchemaError, match=line):
        READER.one(value, "time")
    for values in ([value], np.array([value]), ["2026-01-01", value]):
        with pytest.raises(SchemaError, match=line):
            READER.many(values, "history_time")


@pytest.mark.parametrize(
    "value",
    [
        *("1989-12-31T23:59:59Z", "2100-01-01", "soon", "01/02/2026", "", b"soon"),
        *(datetime.datetime(1970, 1, 1, tzinfo=UTC), datetime.datetime(2200, 1, 1), pd.NaT, pd.Timestamp("1980-01-01")),
        *(np.datetime64("1980-01-01"), np.datetime64("NaT"), np.datetime64("30000-01-01")),
        *(None, True, {}, [], object()),
    ],
)
def test_what_is_no_moment_from_1990_to_2100_is_refused_by_place(value: Any) -> None:
    with pytest.raises(SchemaError, match="time: "):
        READER.one(value, "time")
    with pytest.raises(SchemaError, match=r"history_time\[1\]: "):
        READER.many(["2026-01-01", value], "history_time")
    if isinstance(value, np.datetime64):
        with pytest.raises(SchemaError, match=r"history_time\[0\]: "):
            READER.many(np.array([value]), "history_time")
