"""Two workers with half a batch each against one with the whole: two processes connected on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.towers.tiny import tiny_data
from towers.data.sampler import Sampler
from towers.network.model import TwoTowers, tensors_of
from towers.runtime import tf
from towers.settings import settings_for
from towers.training.workers import part_of


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_the_parts_gradients_add_up_to_the_whole(kind: str) -> None:
    data = tiny_data(kind)
    given = {"embedding_dim": 9, "batch_users": 31, "uniform_negatives": 20, "in_batch_negatives": 25}
    settings = settings_for(data.schema, **given)
    sampler = Sampler(data, data.events.before(1), settings)
    model = TwoTowers(data, settings, 1)

    def gradients(batch: object) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(tensors_of(batch))
        found = tape.gradient(loss, model.trainable_variables)
        return [loss.numpy(), *(tf.convert_to_tensor(g).numpy() for g in found if g is not None)]

    batch = next(sampler.epoch(np.random.default_rng(2)))
    whole = gradients(batch)
    parts = [gradients(part_of(batch, index, 3)) for index in range(3)]
    # Sums of float32 in another order; a pair that were lost or counted twice would be some percent. Gradients that are
    # 0 but for rounding are not compared with themselves.
    largest = max(np.abs(expected).max() for expected in whole[1:])
    for place, expected in enumerate(whole):
        tolerance = 1e-3 * np.abs(expected).max() + 1e-6 * largest
        np.testing.assert_allclose(sum(part[place] for part in parts), expected, atol=tolerance)


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.parametrize("kind", ["set", "order"])
def test_two_processes_learn_what_one_learns(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.towers.worker", kind]
    subprocess.run([*command, str(tmp_path / "alone.npz")], check=True, timeout=120)
    addresses = [f"127.0.0.1:{port}" for port in _ports(2)]
    running = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(config)}
        running.append(subprocess.Popen([*command, str(tmp_path / f"{index}.npz")], env=environment))
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    alone, *together = (np.load(tmp_path / f"{name}.npz") for name in ("alone", "0", "1"))
    for one in together:
        assert one["agree"].tolist() == [True, False]
        assert set(one.files) == set(alone.files)
        for name in set(alone.files) - {"agree"}:
            np.testing.assert_allclose(one[name], alone[name], atol=2e-4, err_msg=name)
