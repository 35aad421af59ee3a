"""Keras 2 is chosen before TensorFlow is imported, or the error says how."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def imported(program: str, switch: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {} if switch is None else {"TF_USE_LEGACY_KERAS": switch}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("program", "switch"),
    [("import towers.runtime", None), ("import tensorflow, towers.runtime", "1")],
    ids=["towers first", "tensorflow first, with the switch"],
)
def test_keras_2_is_taken(program: str, switch: str | None) -> None:
    done = imported(f"{program}; import tensorflow as tf; print(tf.keras.layers.Layer.__module__)", switch)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tf_keras")


@pytest.mark.parametrize(
    ("program", "switch", "message"),
    [
        ("import tensorflow; tensorflow.keras.layers; import towers.runtime", None, "was imported with Keras 3"),
        ("import towers.runtime", "0", "expected '1', got '0'"),
    ],
    ids=["tensorflow first, without the switch", "the switch is off"],
)
def test_keras_3_is_refused_with_a_remedy(program: str, switch: str | None, message: str) -> None:
    done = imported(program, switch)
    assert done.returncode == 1
    assert message in done.stderr
