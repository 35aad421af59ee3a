"""The state of a training run on disk: a killed run continues with the same loss curve.

Reads and writes a directory next to the model artifact: weights and optimizer moments (``.npz``, no pickle), the best
weights so far, the curves. A checkpoint of other features, settings, workers or another seed is not used.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.drafts import replace_directory

Weights = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Best:
    """The best validation recall so far, its epoch (0: none) and the model's weights at that epoch."""

    epoch: int = 0
    valid: float = -1.0
    weights: Weights | None = None


@dataclass(frozen=True)
class State:
    """What is needed apart from the weights to continue after ``epoch``: the ``best`` so far (in the refit, the epoch
    that the search found), and the ``curves`` of all phases.
    """

    epoch: int
    best: Best
    curves: list[dict[str, Any]]


class CheckpointDirectory:
    """The directory of one run's checkpoints.

    Args:
        directory: created with the first checkpoint.
        fingerprint: of everything that the run depends on.
        minutes: minimum time between two checkpoints.
        resume: whether an existing checkpoint may be used.
    """

    def __init__(self, directory: Path, fingerprint: str, minutes: float, resume: bool = True) -> None:
        self.directory, self.fingerprint, self.minutes, self.resume = directory, fingerprint, minutes, resume
        self._last = time.monotonic()

    def save(self, phase: str, state: State, model: Any, optimizer: Any) -> None:
        """Writes a checkpoint if the last one is old enough."""
        if time.monotonic() - self._last < self.minutes * 60:
            return
        aside = self.directory.with_name(f"{self.directory.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write(aside / "model.npz", model.get_weights())
        _write(aside / "optimizer.npz", [variable.numpy() for variable in optimizer.variables])
        if state.best.weights is not None:
            _write(aside / "best.npz", state.best.weights)
        record = {
            "fingerprint": self.fingerprint, "phase": phase, "epoch": state.epoch, "best_epoch": state.best.epoch,
            "best_valid": state.best.valid, "curves": state.curves,
        }  # fmt: skip
        (aside / "state.json").write_text(json.dumps(record))
        replace_directory(aside, self.directory)
        self._last = time.monotonic()

    def restore(self, phase: str, model: Any, optimizer: Any) -> State | None:
        """Loads a checkpoint of this run and phase into model and optimizer; None if there is none."""
        record = self._record()
        if record is None or record["phase"] != phase:
            return None
        optimizer.build(model.trainable_variables)
        model.set_weights(_read(self.directory / "model.npz"))
        for variable, value in zip(optimizer.variables, _read(self.directory / "optimizer.npz"), strict=True):
            variable.assign(value)
        best_file = self.directory / "best.npz"
        best = Best(record["best_epoch"], record["best_valid"], _read(best_file) if best_file.exists() else None)
        return State(record["epoch"], best, record["curves"])

    def reached(self) -> tuple[str, int, int]:
        """Phase and epoch of this run's checkpoint, and the best epoch by then; ("", 0, 0) without a checkpoint."""
        record = self._record()
        return ("", 0, 0) if record is None else (record["phase"], record["epoch"], record["best_epoch"])

    def _record(self) -> dict[str, Any] | None:
        file = self.directory / "state.json"
        if not self.resume or not file.is_file():
            return None
        record: dict[str, Any] = json.loads(file.read_text())
        return record if record["fingerprint"] == self.fingerprint else None

    def remove(self) -> None:
        """Removes the checkpoint after a successful run."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _write(path: Path, weights: Weights) -> None:
    np.savez(path, *weights)


def _read(path: Path) -> Weights:
    with np.load(path, allow_pickle=False) as stored:
        return [stored[f"arr_{place}"] for place in range(len(stored.files))]
