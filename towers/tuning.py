"""Search over the ranges of ``[towers.tune]``, by validation recall alone.

Reads ``features/``; writes a TOML with the best settings, and beside it the journal of the trials: a search that was
killed goes on where it stood. Needs the extra ``tune``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.manifest import write_durably
from towers.inputs import TrainingData, load
from towers.settings import TowersSettings, TuningRange


def run(
    features: Path, settings: TowersSettings, out: Path, *, trials: int = 20, seed: int = 17, progress: bool = True
) -> Path:
    """Tries ``trials`` settings in all (those of an earlier, killed search counted in) and writes the best to ``out``.

    The test part is never looked at. Trials that fall behind the others half way are ended early.

    Raises:
        ConfigError: ``[towers.tune]`` names no range, the extra is not installed, or no trial came to its end.
    """
    if not settings.tune:
        raise ConfigError(
            "[towers.tune]: expected at least one key with its range, got none. "
            "Add for example learning_rate = { low = 1e-4, high = 1e-2, log = true }."
        )
    optuna = _optuna()
    from towers.training import TrainingError

    data = load(features)
    journal = out.with_suffix(".journal")
    out.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="towers",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal))),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    )
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    left = trials - len(study.get_trials(deepcopy=False, states=finished))
    if left > 0:
        study.optimize(
            lambda trial: _score(trial, data, settings, seed, optuna.TrialPruned),
            n_trials=left,
            show_progress_bar=progress,
            # Values with which training ends in no number are a result: bad ones.
            catch=(TrainingError,),
        )
    if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        raise ConfigError(f"{journal}: no trial came to its end. Widen [towers.tune] or lower the learning rate.")
    write_durably(out, to_toml(study.best_params, study.best_value).encode())
    return out


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as err:
        raise ConfigError("tuning needs Optuna: pip install 'towerline[tune]'") from err
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _score(trial: Any, data: TrainingData, settings: TowersSettings, seed: int, pruned: type[Exception]) -> float:
    """The best validation recall of one training with the trial's values."""
    from towers.training import Epoch, train

    values = {key: suggest(trial, key, span) for key, span in settings.tune.items()}
    chosen = TowersSettings.model_validate({**settings.model_dump(exclude_unset=True), **values, "refit": False})
    best = 0.0

    def report(epoch: Epoch) -> None:
        nonlocal best
        if epoch.valid is None:
            return
        best = max(best, epoch.valid)
        trial.report(best, epoch.epoch)
        if trial.should_prune():
            raise pruned

    train(data, chosen.resolved(data.schema), seed=seed, report=report)
    return best


def suggest(trial: Any, key: str, span: TuningRange) -> Any:
    """A value for ``key``: whole where the settings' key is whole."""
    if span.choices:
        return trial.suggest_categorical(key, list(span.choices))
    if TowersSettings.model_fields[key].annotation is int:
        return trial.suggest_int(key, int(span.low or 0), int(span.high or 0), log=span.log)
    return trial.suggest_float(key, span.low, span.high, log=span.log)


def to_toml(values: dict[str, Any], valid: float) -> str:
    """The values as a ``[towers]`` section."""
    # JSON's numbers, strings and booleans are TOML's.
    lines = [f"{key} = {json.dumps(value)}" for key, value in sorted(values.items())]
    return "\n".join([f"# validation recall {valid:.5f}", "[towers]", *lines, ""])
