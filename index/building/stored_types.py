"""The schema of a bundle: the data set's own, with the types that the features job settled for every column.

A TOML may leave types open, to be those of its Parquet files. A bundle does not: the changes of its items and the
requests for its users are read without the tables.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.schema import DatasetSchema, Ids
from pipelines.sequences.reader import EVENTS_COLUMN, TRAIN_COLUMN

# Columns of the features' users that are no columns of the users table.
_ADDED = ("user_id", EVENTS_COLUMN, TRAIN_COLUMN)


def with_stored_types(schema: DatasetSchema, features: Path, item_ids: pa.DataType) -> DatasetSchema:
    """The schema with the types of the features' items and users.

    Args:
        schema: the data set's.
        features: the features artifact.
        item_ids: type of the catalogue's ids.

    Raises:
        ArtifactError: the items or the users cannot be read.
    """
    items, users = _schema_of(features / "items"), _schema_of(features / "users")
    ids = Ids.model_validate(
        {"user": ColumnType.for_ids(users.field("user_id").type).type, "item": ColumnType.for_ids(item_ids).type}
    )
    own = [field for field in users if field.name not in _ADDED]
    return schema.with_stored({"items": _kinds(items), "users": _kinds(own)}, ids)


def _kinds(fields: pa.Schema | list[pa.Field]) -> dict[str, ColumnType]:
    kinds = {field.name: ColumnType.for_stored(field.type) for field in fields}
    # A time that the TOML does not name may be any (9999-12-31), and one that it names is from 1990 to 2100.
    return {name: kind for name, kind in kinds.items() if kind is not None and kind.type != "timestamp"}


def _schema_of(folder: Path) -> pa.Schema:
    try:
        return pq.read_schema(min(folder.glob("*.parquet")))
    except (OSError, ValueError, pa.ArrowException) as err:
        raise ArtifactError(f"{folder}: expected Parquet files ({err}). Run `towerline features`.") from err
