"""Hard negatives from the live version: its items for each user before the valid split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.retrieval.retriever import Retriever
from pipelines.sequences.reader import Sequences, load_items, load_users
from tests.index.nights import config, tables_of, write_nights
from tests.recorded import Recorded
from towerline.jobs import refresh
from towerline.jobs.hard_negatives import mine
from towers.settings import WindowsSettings


def test_nothing_is_mined_where_nothing_is_asked_for_or_live(tmp_path: Path) -> None:
    progress = Recorded()
    assert mine(config(tmp_path), tmp_path, progress) is None
    asked = config(tmp_path).model_copy(update={"towers": WindowsSettings(hard_negatives=3)})
    assert mine(asked, tmp_path, progress) is None
    assert progress.lines == ["train: no live version to mine hard negatives from; trained without"]


def test_each_user_gets_what_the_live_version_answers_to_the_history(tmp_path: Path) -> None:
    write_nights(tmp_path / "nights", 2)
    with tables_of(tmp_path / "nights", lambda: 0):
        refresh.run(config(tmp_path))
    # The next night's catalogue has one more item: places are found by id.
    features = tmp_path / "nights" / "features-1"
    asked = config(tmp_path).model_copy(update={"towers": WindowsSettings(hard_negatives=4)})
    mined = mine(asked, features)
    assert mined is not None
    events, ids = Sequences.open(features).events, load_items(features)["item_id"].to_pylist()
    assert mined.rows.shape == (events.num_users, 4)
    assert (events.splits == 1).any()
    schema, profiles = asked.schema_only(), load_users(features).to_pylist()
    compared = 0
    with Retriever.open(tmp_path / "registry") as live:
        assert mined.version == live.version
        for user in range(10):
            own = np.flatnonzero((events.owners == user) & (events.splits < 1))[-schema.history.max_length :]
            record = {name: profiles[user][name] for name in ("country", "age", "interests")}
            record |= {
                "history": [ids[row] for row in events.rows[own]],
                "history_time": events.times[own].astype("datetime64[us]"),
                "history_action": [schema.action_names[code] for code in events.actions[own]],
                "time": schema.split.test_from,
            }
            expected = live.retrieve({key: value for key, value in record.items() if value is not None}, k=4)
            if expected.cold_start is None:
                assert [ids[row] for row in mined.rows[user]] == expected.item_ids.tolist()
                compared += 1
    assert compared >= 5
