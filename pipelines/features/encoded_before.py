"""Encoded before: a part of items or users whose encoding would be the previous run's, so that its file is linked.

It is where the raw columns of its features are equal, what was fitted is equal, and no feature looks back from a moment
that has moved.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.contracts.kinds import TimeSinceFeature
from pipelines.contracts.schema import Side
from pipelines.features.task import Job


def encoded_before(job: Job, name: str) -> Path | None:
    """The previous run's encoding of a part (``users/part-...``) if this run's would be the same; None if not."""
    folder, file = name.split("/")
    side: Side = "item" if folder == "items" else "user"
    base = job.base
    if base is None or not base.same_features:
        return None
    features = job.schema.side(side)
    looks_back = any(isinstance(feature, TimeSinceFeature) for feature in features)
    before, encoded = Path(base.dir) / name, Path(base.dir) / f"{folder}_encoded" / file
    if (looks_back and base.as_of_us != job.as_of_us) or not before.exists() or not encoded.exists():
        return None
    if not _same_vocabulary(str(Path(base.dir) / "vocabulary"), str(Path(job.out) / "vocabulary"), side):
        return None
    own = job.schema.id_column(side)
    columns = {"user_id" if side == "user" and column == own else column for f in features for column in f.raw_columns}
    one, other = (pq.ParquetFile(path) for path in (before, Path(job.out) / name))
    if one.metadata.num_rows != other.metadata.num_rows:
        return None
    known = sorted(columns & set(other.schema_arrow.names))
    if known != sorted(columns & set(one.schema_arrow.names)):
        return None
    same = not known or one.read(columns=known).equals(other.read(columns=known))
    return encoded if same else None


@functools.lru_cache(maxsize=2)
def _same_vocabulary(before: str, now: str, side: Side) -> bool:
    """Whether two vocabularies have the same entries for a side; a draft has a unique path."""
    folders = Path(before), Path(now)
    index = [json.loads((folder / "vocabulary.json").read_bytes())[side] for folder in folders]
    files = [{path.name: path.read_bytes() for path in folder.glob(f"{side}.*.arrow")} for folder in folders]
    return index[0] == index[1] and files[0] == files[1]
