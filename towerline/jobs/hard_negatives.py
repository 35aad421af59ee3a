"""Hard negatives: the live version's items for each user, mined before the next training.

Reads the registry's live bundle and a features artifact. Items that a user took are never negatives: training removes
them by the events it may know.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.inference.user_records import UserRecords, records_of
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from index.settings import RetrieverSettings
from pipelines.contracts.schema import SplitName
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.progress import SILENT, Progress
from towerline.config import Config
from towers.data.training_data import Mined

_BLOCK = 2048


def mine(
    config: Config, features: Path, progress: Progress = SILENT, *, stage: str = "train", whole: bool = False
) -> Mined | None:
    """The ``towers.hard_negatives`` best items of the live version for each user as known before the valid split.

    Args:
        config: says how many, and where the registry is.
        features: the artifact with the users.
        progress: shows the users answered.
        stage: what the lines begin with.
        whole: the features hold nothing out. Otherwise the live version's backtest is asked where it has one: what its
            published towers find for a user may be what the user took in the held-out window.

    Returns:
        ``rows [users, n] int32`` in the features' catalogue, -1 where the index returned fewer or an item is gone;
        None if the settings ask for none, or nothing is live yet.
    """
    count = config.towers.hard_negatives
    if not count:
        return None
    registry = Registry(config.registry)
    if registry.current_or_none() is None:
        progress.line(f"{stage}: no live version to mine hard negatives from; trained without")
        return None
    version = registry.open()
    asked = version.bundle if whole else version.bundle.measured
    # The towers' own ranking: items that users buy again are not negatives.
    with Retriever.open(asked.dir, verify=False, settings=RetrieverSettings(own_items_share=0.0)) as live:
        with progress.waiting(f"{stage}: reading the users"):
            rows = _mined(live, config, features, count, progress)
        progress.line(f"{stage}: {count} hard negatives per user from {version.version}")
        return Mined(version.version, rows)


def miner(config: Config, features: Path, progress: Progress = SILENT) -> Callable[[int], Mined | None]:
    """Mines as many as the trials of ``tune`` need."""

    def mined(count: int) -> Mined | None:
        towers = config.towers.model_copy(update={"hard_negatives": count})
        return mine(config.model_copy(update={"towers": towers}), features, progress, stage="tune")

    return mined


def _mined(live: Retriever, config: Config, features: Path, count: int, progress: Progress) -> npt.NDArray[np.int32]:
    vocabulary = Vocabulary.load(features / "vocabulary")
    ids = vocabulary.item_ids
    everyone = UserRecords.open(features)
    split: SplitName = "valid" if (everyone.events.splits == 1).any() else "test"
    users = everyone.table(np.arange(everyone.num_users), config.schema_only(), ids, split)
    rows = np.full((len(users), count), -1, np.int32)
    with progress.bar(len(users), "hard negatives", "users") as bar:
        for start in range(0, len(users), _BLOCK):
            records = records_of(users.slice(start, _BLOCK))
            for place, answer in enumerate(live.retrieve_batch(records, k=count)):
                rows[start + place, : len(answer)] = vocabulary.item_rows(pa.array(answer.item_ids, ids.type))
            bar.advance(len(records))
    return rows
