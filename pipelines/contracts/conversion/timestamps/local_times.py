"""Local times to UTC.

Where clocks go back, a time that occurs twice is the earlier one; where they go forward, a time that is left out is the
moment of the change.
"""

from __future__ import annotations

import datetime
import zoneinfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion.plain import nulls
from pipelines.contracts.errors import ConfigError

US_PER_DAY = 86_400_000_000
# A moment outside has a wrong unit or is a placeholder.
EARLIEST_US = 631_152_000_000_000  # 1990-01-01
LATEST_US = 4_102_444_800_000_000  # 2100-01-01, itself outside
# Arrow knows the changes of clocks that the time zone database lists, which end with 2037, and not the rules after.
_LISTED_US = 2_145_916_800_000_000  # 2038-01-01
# Times further out are out of range in every time zone.
_ROOM_US = 2 * US_PER_DAY
_EPOCH = datetime.datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=datetime.UTC)
_US = datetime.timedelta(microseconds=1)


def utc_us(moment: datetime.datetime) -> int:
    """Microseconds UTC of a moment with a zone."""
    since = moment - _EPOCH_UTC
    return since.days * US_PER_DAY + since.seconds * 1_000_000 + since.microseconds


def localised(numbers: pa.Array, timezone: str | None) -> pa.Array:
    """int64 microseconds of local time -> int64 microseconds UTC; those far from 1990 to 2100 stay as they are.

    Raises:
        ConfigError: the machine does not have the time zone.
    """
    if timezone is None or timezone == "UTC":
        return numbers
    values = np.asarray(numbers.fill_null(0), np.int64)
    moments = values.copy()
    listed = (values > EARLIEST_US - _ROOM_US) & (values < _LISTED_US)
    moments[listed] = _by_arrow(values[listed], timezone)
    later = (values >= _LISTED_US) & (values < LATEST_US + _ROOM_US)
    distinct, places = np.unique(values[later], return_inverse=True)
    zone = zoneinfo.ZoneInfo(timezone)
    moments[later] = np.array([_moment(value, zone) for value in distinct.tolist()], np.int64)[places]
    return pa.array(moments, mask=nulls(numbers))


def _by_arrow(values: Int64, timezone: str) -> Int64:
    local = pa.array(values).cast(pa.timestamp("us"))
    try:
        moments = pc.assume_timezone(local, timezone, ambiguous="earliest", nonexistent="latest")
    except pa.ArrowInvalid as err:
        raise ConfigError(
            f'timezone = "{timezone}" cannot be read on this machine: {err}. Install its time zone database (tzdata).'
        ) from err
    return np.asarray(moments.cast(pa.int64()), np.int64)


def _moment(local_us: int, zone: zoneinfo.ZoneInfo) -> int:
    local = _EPOCH + local_us * _US
    offsets = {local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1)}
    candidates = sorted(local_us - offset // _US for offset in offsets if offset is not None)
    for candidate in candidates:
        if _shown(candidate, zone) == local_us:
            return candidate
    low, high = candidates
    while high - low > 1:  # Skipped by the clocks: the change is between the two.
        middle = (low + high) // 2
        low, high = (middle, high) if _shown(middle, zone) < local_us else (low, middle)
    return high


def _shown(us: int, zone: zoneinfo.ZoneInfo) -> int:
    """Microseconds that the zone's clocks show at a moment."""
    moment = (_EPOCH + us * _US).replace(tzinfo=datetime.UTC).astimezone(zone)
    return (moment.replace(tzinfo=None) - _EPOCH) // _US
