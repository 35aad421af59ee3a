"""The schema: a data set's tables, columns, features, actions and split, from its TOML.

Reads a TOML file. Imports neither Beam, TensorFlow nor ScaNN. The sections that belong
to later stages (``[towers]``, ``[index]``, ...) are defined by those packages; ``towerline.config`` puts the
whole file together.
"""

from pipelines.contracts.schema.dataset import (
    Dataset,
    DatasetSchema,
    Features,
    History,
    Ids,
    Side,
    TableName,
    id_type,
    parse_schema,
    resolve_paths,
)
from pipelines.contracts.schema.split import SPLITS, Split, SplitName
from pipelines.contracts.schema.tables import EventsTable, ItemsTable, Tables, TableSource, UsersTable
from pipelines.contracts.schema.validation import ColumnRule, DriftLimits, Validation
from pipelines.contracts.schema.window import Window

__all__ = [
    "SPLITS",
    "ColumnRule",
    "Dataset",
    "DatasetSchema",
    "DriftLimits",
    "EventsTable",
    "Features",
    "History",
    "Ids",
    "ItemsTable",
    "Side",
    "Split",
    "SplitName",
    "TableName",
    "TableSource",
    "Tables",
    "UsersTable",
    "Validation",
    "Window",
    "id_type",
    "parse_schema",
    "resolve_paths",
]
