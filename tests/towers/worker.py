"""One of two workers, or the only one: trains on the tiny data and writes its weights.

python -m tests.towers.worker KIND OUT
"""

from __future__ import annotations

import sys

import numpy as np

from tests.towers.tiny import tiny_data
from towers.training.workers import workers


def main(kind: str, out: str) -> None:
    """Two epochs without dropout, whose draws would differ from worker to worker."""
    team = workers()
    from towers.settings import settings_for
    from towers.training.job import train

    data = tiny_data(kind)
    given = {
        "embedding_dim": 9, "epochs": 2, "batch_users": 31, "uniform_negatives": 20, "id_dropout": 0.0,
        "refit": False, "initializer": "random", "clip_norm": 0.05, "epsilon": 1e-3,
    } | {"time": {"min_steps": 3}, "order": {"min_steps": 3, "dropout": 0.0}, "set": {}}[kind]  # fmt: skip
    trained = train(data, settings_for(data.schema, **given), seed=5)
    agree = [team.agree(("search", 2, 1)), team.agree(("search", team.index, 1))]
    np.savez(out, *trained.model.get_weights(), losses=[epoch.loss for epoch in trained.curves], agree=agree)


if __name__ == "__main__":
    main(*sys.argv[1:])
