"""The job of this package: features to a model.

Reads ``features/``; writes ``model/``. Trains on the train split with early stopping on exact validation recall, then
(``refit``) once more on train and valid for as many epochs, and exports the towers.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts.errors import SchemaError, TowerlineError
from pipelines.contracts.manifest import fingerprint_of, open_artifact, read_manifest, write_artifact
from pipelines.contracts.schema import SPLITS, SplitName
from pipelines.progress import SILENT, Bar, Progress
from towers.closed_form.content_fit import content_of, settle
from towers.closed_form.start import start_from_svd
from towers.data.sampler import Sampler
from towers.data.training_data import Mined, TrainingData, load
from towers.export import write_towers
from towers.network.model import TwoTowers, signature, tensors_of
from towers.runtime import tf, tf_keras
from towers.settings import TowersSettings
from towers.training import checkpoints
from towers.training.optimizers import LazyAdam
from towers.training.prefetch import prefetched
from towers.training.published import LEARNED_FACT, Published, published
from towers.training.recall import Figures
from towers.training.validation_recall import can_evaluate, evaluate, selecting, selection
from towers.training.warm_start import (
    EPOCHS_FOUND,
    FORGOTTEN_USERS,
    NIGHTS,
    WarmStart,
    epochs_found,
    forgotten_users,
)
from towers.training.workers import part_of, workers

KIND = "model"
FORMAT_VERSION = 1
_VALID = SPLITS.index("valid")
_LOG = logging.getLogger(__name__)


class TrainingError(TowerlineError):
    """Training cannot continue: the loss or a gradient is NaN or infinite."""


@dataclass(frozen=True)
class Epoch:
    """Results of one pass over the users. ``valid`` is the number that early stopping uses, None if not measured.

    Epoch 0 is the state before training, measured if it is a closed-form start: it may be the best.
    """

    phase: str
    epoch: int
    loss: float
    seconds: float
    examples_per_second: float
    valid: float | None = None
    recall: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A model and its training curves; ``best_epoch`` is the epoch whose weights it has, ``learned`` the splits it has
    learned from.
    """

    model: TwoTowers
    curves: tuple[Epoch, ...]
    best_epoch: int
    learned: tuple[SplitName, ...]


def run(
    features: Path,
    settings: TowersSettings,
    out: Path,
    *,
    seed: int = 17,
    progress: Progress = SILENT,
    resume: bool = True,
    mined: Mined | None = None,
    warm: WarmStart | None = None,
    epochs: int | None = None,
) -> Path:
    """Trains the towers on the artifact at ``features`` and writes the model artifact to ``out``.

    A killed run continues from its last checkpoint, kept next to ``out``, if features, settings, seed, the mined
    version, the earlier model and the number of workers are the same. TensorBoard curves are written to
    ``tensorboard/`` next to ``out``. With several workers (``TF_CONFIG``) each calls this with the same arguments and
    features, and the first of them writes. ``mined``: hard negatives. ``warm``: continue from an earlier model instead
    of training in full. ``epochs``: do not look for the best epoch, train for this number of epochs on train and valid
    (0: the start is the result). ``progress``: shows the steps of each phase; with several workers, those of the first.

    Raises:
        ArtifactError: the features or the earlier model are missing or damaged, the earlier model has other towers, or
            an exported tower differs from the trained one.
        SchemaError: there is nothing to learn from, or the settings do not fit the data.
        ConfigError: TensorFlow was imported with another Keras.
        TrainingError: the loss or a gradient became NaN or infinite.
    """
    # Before any other use of TensorFlow: workers of TF_CONFIG connect here.
    team = workers()
    shown = progress if team.writes else SILENT
    artifact = open_artifact(features, kind="features", verify=False)
    with shown.waiting("loading the features"):
        data = load(features)
    if mined is not None:
        data = replace(data, mined=mined.rows)
    settings.refuse_misfits(data.schema)
    config = {"towers": settings.model_dump(mode="json", exclude={"tune"}), "seed": seed}
    inputs = {"features": artifact.manifest.fingerprint}
    begun_from = None if warm is None else [read_manifest(warm.model).fingerprint, warm.epochs]
    mined_from = None if mined is None else mined.version
    fingerprint = fingerprint_of([inputs, config, begun_from, mined_from, team.count, epochs])
    own = f".{out.name}.checkpoint" + (f".{team.index}" if team.index else "")
    # Workers resume together or not at all: each has a checkpoint of every epoch.
    minutes = settings.checkpoint_minutes if team.count == 1 else 0.0
    place = checkpoints.CheckpointDirectory(out.parent / own, fingerprint, minutes, resume)
    if not team.agree(place.reached()):
        _LOG.warning("the workers' checkpoints are of different epochs: training starts over")
        place.resume = False
    report = _to_tensorboard(out.parent / "tensorboard" / fingerprint[:12]) if team.writes else None
    if warm is None:
        trained = train(data, settings, seed=seed, progress=shown, place=place, report=report, epochs=epochs)
    else:
        trained = _go_on(data, settings, warm, features, seed=seed, progress=shown, place=place, report=report)
    if not team.writes:
        place.remove()
        return out
    outcome = _outcome(trained, asked=epochs, warm=warm)
    shown.line(
        f"towers: {'the start is' if outcome.towers == 'start' else 'trained towers are'} published: {outcome.why}"
    )
    with (
        shown.waiting("exporting the towers"),
        write_artifact(out, kind=KIND, format_version=FORMAT_VERSION, inputs=inputs, config=config) as draft,
    ):
        facts = write_towers(trained.model, data.schema, settings, draft.dir, seed)
        shutil.copy2(features / "schema.json", draft.dir / "schema.json")
        shutil.copytree(features / "vocabulary", draft.dir / "vocabulary")
        record = {"seed": seed, "best_epoch": trained.best_epoch, **outcome.as_facts()}
        record["epochs"] = [asdict(epoch) for epoch in trained.curves]
        (draft.dir / "training.json").write_text(json.dumps(record, indent=1))
        draft.facts.update({"space": facts["space"], "dim": facts["dim"], "best_epoch": trained.best_epoch})
        draft.facts.update(outcome.as_facts() | {LEARNED_FACT: list(trained.learned)})
        draft.facts[NIGHTS] = 0 if warm is None else warm.nights()
        draft.facts[EPOCHS_FOUND] = trained.best_epoch if warm is None else epochs_found(read_manifest(warm.model))
        draft.facts[FORGOTTEN_USERS] = forgotten_users(artifact.manifest)
        draft.facts["mined_from"] = mined_from
        draft.facts["valid"] = max((epoch.valid for epoch in trained.curves if epoch.valid is not None), default=None)
    place.remove()
    return out


def _outcome(trained: Trained, *, asked: int | None, warm: WarmStart | None) -> Published:
    valid = [(one.epoch, one.valid) for one in trained.curves if one.phase == "search" and one.valid is not None]
    return published(trained.best_epoch, valid, asked=asked, continued=None if warm is None else warm.epochs)


def train(
    data: TrainingData,
    settings: TowersSettings,
    *,
    seed: int,
    progress: Progress = SILENT,
    place: checkpoints.CheckpointDirectory | None = None,
    report: Callable[[Epoch], None] | None = None,
    epochs: int | None = None,
) -> Trained:
    """Both phases: the search for the best epoch, and the refit.

    Args:
        settings: resolved.
        progress: shows the steps of each phase, and that the start is being computed.
        report: called after each epoch, and with the measured start; an exception that it raises ends the training
            (tuning prunes this way).
        epochs: the refit alone, for this number of epochs.
    """
    if epochs is not None:
        return _Phase(data, settings, seed, "refit", epochs, False, place, report, progress).fit()
    can_validate = can_evaluate(data, _VALID)
    phase, _, best_epoch = ("", 0, 0) if place is None else place.reached()
    curves: tuple[Epoch, ...] = ()
    # A checkpoint of the refit contains the search's curves and best epoch.
    if phase != "refit":
        found = _Phase(data, settings, seed, "search", settings.epochs, can_validate, place, report, progress).fit()
        if not (settings.refit and can_validate):
            return found
        best_epoch, curves = found.best_epoch, found.curves
    return _Phase(data, settings, seed, "refit", best_epoch, False, place, report, progress, curves).fit()


def _go_on(
    data: TrainingData,
    settings: TowersSettings,
    warm: WarmStart,
    features: Path,
    *,
    seed: int,
    progress: Progress,
    place: checkpoints.CheckpointDirectory,
    report: Callable[[Epoch], None] | None,
) -> Trained:
    """One phase on train and valid. The earlier model has seen most of valid, so valid cannot choose an epoch."""
    settings = settings.model_copy(update={"epochs": warm.epochs, "initializer": "random"})
    phase = _Phase(data, settings, seed, "warm", warm.epochs, False, place, report, progress)
    warm.fill(phase.model, features)
    return phase.fit()


def optimizer_of(model: TwoTowers, data: TrainingData, settings: TowersSettings, steps: int) -> LazyAdam:
    """The settings' optimizer of a built model, for epochs of ``steps`` steps."""
    steps_in_all = max(steps * settings.epochs, 1)
    rate = tf_keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps_in_all, alpha=0.02)
    names = [variable.name for variable in model.trainable_variables]
    assert len(set(names)) == len(names), "two weights of one name would share one rate"
    own = {table.name for table in model.own_rows()}
    shared = {name: settings.shared_rate for name in names if name not in own}
    content = content_of(model.item_tower.body, data)
    shared |= {variable.name: settings.shared_rate * settings.content_rate for variable in content}
    if settings.learned_temperature:
        shared[model.temperature.name] = 1.0
    return LazyAdam(
        rate,
        epsilon=settings.epsilon,
        clipnorm=settings.clip_norm,
        name_to_scale=shared,
        rowwise=own if settings.rowwise else (),
    )


def step_function(model: TwoTowers, optimizer: LazyAdam, batches: dict[str, Any]) -> Any:
    """One training step: ``tensors_of`` a batch (``batches``: their signature) to its loss; NaN if nothing was learned
    because the loss or a gradient is not finite.
    """
    team = workers()

    def learn(batch: dict[str, Any]) -> Any:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)

        def update() -> Any:
            return optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        # NaN must not reach the weights, because the error report is made from them. (Workers cannot synchronise
        # within a condition.)
        length = tf.linalg.global_norm([gradient for gradient in gradients if gradient is not None])
        finite = tf.math.is_finite(loss) & tf.math.is_finite(length)
        if team.count == 1:
            tf.cond(finite, update, lambda: optimizer.iterations)
        else:
            update()
        return tf.where(finite, loss, loss + np.nan)

    # Without autograph: rewriting the source of everything called takes longer than the rest and is not needed.
    @tf.function(input_signature=[batches], autograph=False)
    def step(batch: dict[str, Any]) -> Any:
        return team.strategy.reduce("SUM", team.strategy.run(learn, args=(batch,)), axis=None)

    return step


class _Phase:
    """One training run from the start: ``epochs`` of the settings' schedule, with or without validation."""

    def __init__(
        self,
        data: TrainingData,
        settings: TowersSettings,
        seed: int,
        name: str,
        epochs: int,
        validates: bool,
        place: checkpoints.CheckpointDirectory | None,
        report: Callable[[Epoch], None] | None,
        progress: Progress = SILENT,
        before: tuple[Epoch, ...] = (),
    ) -> None:
        self.data, self.settings, self.seed, self.name = data, settings, seed, name
        self.epochs, self.validates, self.place, self.report = epochs, validates, place, report
        self.progress, self.curves = progress, list(before)
        self.best = checkpoints.Best()
        self.workers = workers()
        events = data.events.before(_VALID + int(name != "search"))
        with progress.waiting(f"{name}: building the towers"):
            self.sampler = Sampler(data, events, settings)
            tf.keras.utils.set_random_seed(seed)
            with self.workers.strategy.scope():
                self.model = TwoTowers(data, settings, seed)
                self.signature = self._built()
                if settings.initializer == "svd":
                    with progress.waiting(f"{name}: closed-form start"):
                        start_from_svd(self.model, data, events)
                self.optimizer = optimizer_of(self.model, data, settings, self.sampler.steps)
                self.model.compile(optimizer=self.optimizer)
        self.step = step_function(self.model, self.optimizer, self.signature)

    def _built(self) -> dict[str, Any]:
        """Creates all weights, some of which Keras creates at the first call; returns the batches' signature."""
        batch = next(self.sampler.epoch(np.random.default_rng(self.seed)), None)
        if batch is None:
            raise SchemaError(
                "expected a user with events before others of an action that weighs something, found none"
                + (
                    " in a window. Lower towers.window_days or towers.min_history_days, or check [split] and [actions]."
                    if self.settings.protocol == "windows"
                    else ". Check [split] and [actions]."
                )
            )
        self.model.compute_loss(tensors_of(batch))
        return signature(batch)

    def fit(self) -> Trained:
        """Trains to the end, or until the validation recall no longer improves."""
        first, steps = self._restore(), self.sampler.steps
        with self.progress.bar(self.epochs * steps, self.name, "steps", done=(first - 1) * steps) as bar:
            self._fit(first, bar)
        if self.best.weights is not None:
            self.model.set_weights(self.best.weights)
        with self.progress.waiting(f"{self.name}: fitting content"), self.workers.strategy.scope():
            settle(self.model, self.data)
        best = self.best.epoch if self.validates else self.epochs
        return Trained(
            self.model, tuple(self.curves), best, ("train",) if self.name == "search" else ("train", "valid")
        )

    def _fit(self, first: int, bar: Bar) -> None:
        if first == 1 and self.validates and self.settings.initializer == "svd":
            self._keep(self._validated(Epoch(self.name, 0, 0.0, 0.0, 0.0)))
        for number in range(first, self.epochs + 1):
            if self.validates and number - 1 - self.best.epoch >= self.settings.patience:
                break
            self._keep(self._epoch(number, bar))
            self._checkpoint(number)

    def _keep(self, epoch: Epoch) -> None:
        self.curves.append(epoch)
        if self.report is not None:
            self.report(epoch)

    def _epoch(self, number: int, bar: Bar) -> Epoch:
        generator = np.random.default_rng([self.seed, number])
        self.model.chance.reset(self.seed * 100_003 + number)
        started, examples = time.monotonic(), 0
        losses: list[float] = []
        for batch, pairs in prefetched(self._batches(generator)):
            loss = float(self.step(batch))
            if not np.isfinite(loss):
                raise TrainingError(self._blame(number, len(losses), loss))
            losses.append(loss)
            examples += pairs
            speed = examples / (time.monotonic() - started)
            valid = {"valid": self.best.valid} if self.best.valid >= 0 else {}
            bar.advance(loss=loss, examples_s=round(speed), **valid)
        seconds = time.monotonic() - started
        mean_loss = float(np.mean(losses)) if losses else 0.0
        epoch = Epoch(self.name, number, mean_loss, seconds, examples / max(seconds, 1e-9))
        return self._validated(epoch) if self.validates else epoch

    def _batches(self, generator: np.random.Generator) -> Iterator[tuple[dict[str, Any], int]]:
        """An epoch's batches: this worker's part of each, and the number of pairs of the whole batch."""
        for batch in self.sampler.epoch(generator):
            yield tensors_of(part_of(batch, self.workers.index, self.workers.count)), len(batch.positives)

    def _validated(self, epoch: Epoch) -> Epoch:
        settings, names = self.settings, selecting(self.settings)
        figures = evaluate(self.model, self.data, _VALID, settings.select_k, settings.max_valid_users, names)
        valid = selection(figures, self.settings)
        if valid > self.best.valid:
            self.best = checkpoints.Best(epoch.epoch, valid, self.model.get_weights())
        return replace(epoch, valid=valid, recall=_flat(figures))

    def _restore(self) -> int:
        if self.place is None:
            return 1
        state = self.place.restore(self.name, self.model, self.optimizer)
        if state is None:
            return 1
        self.best = state.best
        self.curves = [Epoch(**entry) for entry in state.curves]
        _LOG.info("resumed %s after epoch %d", self.name, state.epoch)
        return state.epoch + 1

    def _checkpoint(self, number: int) -> None:
        if self.place is not None:
            curves = [asdict(epoch) for epoch in self.curves]
            best = self.best if self.validates else checkpoints.Best(self.epochs)
            self.place.save(self.name, checkpoints.State(number, best, curves), self.model, self.optimizer)

    def _blame(self, number: int, step: int, loss: float) -> str:
        """The message for a loss that is not finite, with the feature that adds most to a vector."""
        parts: dict[str, float] = {}
        for side, body in (("item", self.model.item_tower.body), ("user", self.model.user_tower.profile)):
            columns = self.data.items if side == "item" else self.data.users
            for name, table in ({} if body is None else body.tables).items():
                parts[f"{side} feature {name!r}"] = float(np.abs(table.numpy()).max())
            for name, weights in ({} if body is None else body.maps).items():
                values, largest = np.abs(columns[name]).max(0), np.abs(weights.numpy()).max(1)
                parts[f"{side} feature {name!r}"] = float(values.astype(np.float64) @ largest.astype(np.float64))
        worst = max(parts, key=lambda name: parts[name] if np.isfinite(parts[name]) else np.inf)
        return (
            f"{self.name}, epoch {number}, step {step}: expected a finite loss and gradient, got {loss}. The largest "
            f"part is {worst} (up to {parts[worst]:.3g}). Lower towers.learning_rate, set clip_norm, or fix the column."
        )


def _to_tensorboard(folder: Path) -> Callable[[Epoch], None]:
    """Writes an epoch's loss, speed and recalls, one TensorBoard run per phase."""
    writers: dict[str, Any] = {}

    def report(epoch: Epoch) -> None:
        if epoch.phase not in writers:
            writers[epoch.phase] = tf.summary.create_file_writer(str(folder / epoch.phase))
        writer = writers[epoch.phase]
        trained = {"loss": epoch.loss, "examples_per_second": epoch.examples_per_second}
        scalars = {**(trained if epoch.epoch else {}), **epoch.recall}
        with writer.as_default(step=epoch.epoch):
            for name, value in scalars.items():
                tf.summary.scalar(name.replace(" ", "_"), value)
        writer.flush()

    return report


def _flat(figures: dict[str, Figures]) -> dict[str, float]:
    return {f"{name}.{k}": value for name, figure in figures.items() for k, value in figure.capped_recall.items()}
