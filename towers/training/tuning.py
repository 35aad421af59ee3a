"""Searches the ranges of ``[towers.tune]`` by validation recall alone.

Reads ``features/``; writes a TOML with the best values, and next to it the journal of the trials, from which a search
that was stopped continues. A journal of other features, settings, ranges or another seed is refused and left unchanged.
Needs the extra ``tune``.
"""

from __future__ import annotations

import itertools
import json
import math
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import numpy as np

from pipelines.contracts.errors import ConfigError, SchemaError, TowerlineError
from pipelines.contracts.manifest import read_manifest, write_durably
from pipelines.contracts.schema import SPLITS
from pipelines.progress import SILENT, Progress
from towers.data.training_data import Mined, TrainingData, load
from towers.keys import TuningRange
from towers.settings import CLASSES, TowersSettings, chosen_by, deciding_keys, read_by, settings_for

if TYPE_CHECKING:
    from towers.training.job import Epoch

# Attributes in the journal: of the study, what all its trials share; of a trial, why its values failed.
_MADE_WITH, _FAILED = "made_with", "failed"
_METRIC = ("select", "select_k", "max_valid_users")
_IDLE = ("refit", "checkpoint_minutes")


def run(
    features: Path,
    settings: TowersSettings,
    out: Path,
    *,
    trials: int = 20,
    seed: int = 17,
    progress: Progress = SILENT,
    mine: Callable[[int], Mined | None] = lambda _: None,
) -> Path:
    """Tries ``trials`` settings in all (including those of an earlier, stopped search); writes the best to ``out``.

    The test part is never used. A trial's score is the best validation recall of its epochs, including the start if it
    is measured: the number that training itself uses. Trials that fall behind the others half way are ended early; a
    trial with invalid values is reported to ``progress`` in one line, and the search continues. ``mine`` returns that
    many hard negatives per user, None if nothing is live; it is called once, with the most that a trial may need.

    Raises:
        ConfigError: ``[towers.tune]`` names no range or an invalid one, the extra is not installed, the journal is of
            another search, or no trial was completed.
        ArtifactError: the features are missing or damaged.
        SchemaError: there is nothing to learn from, or no valid split to choose by.
    """
    _check(settings, trials)
    optuna = _optuna()
    with progress.waiting("loading the features"):
        data = load(features)
    search = _Search(data, settings, seed, _mined(settings, mine))
    search.check()
    journal = out.with_suffix(".journal")
    out.parent.mkdir(parents=True, exist_ok=True)
    study = _study(optuna, journal, search.made_with(features))
    done = len(_tried(study))
    with progress.bar(max(trials, done), "tune", "trials", done=done) as bar:
        for _ in range(trials - done):
            # Seeded by the number of earlier draws: a search that was stopped continues with the same draws.
            drawn = np.random.SeedSequence([seed, len(study.get_trials(deepcopy=False))])
            study.sampler = optuna.samplers.TPESampler(seed=int(drawn.generate_state(1)[0]))
            search.attempt(optuna, study, progress)
            bar.advance()
    write_durably(out, to_toml(_best(study, journal), _tried(study), search).encode())
    return out


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as err:
        raise ConfigError("tuning needs Optuna: pip install 'towerline[tune]'") from err
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check(settings: TowersSettings, trials: int) -> None:
    """Checks that trials can be drawn from the ranges and compared."""
    if not settings.tune:
        raise ConfigError(
            "[towers.tune]: expected at least one key with its range, got none. "
            "Add for example learning_rate = { low = 1e-4, high = 1e-2, log = true }."
        )
    if trials < 1:
        raise ConfigError(f"--trials: expected 1 or more, got {trials}.")
    for key, span in settings.tune.items():
        if key in _METRIC:
            _refuse(key, "it determines which recall is measured, or for which users: trials could not be compared")
        if key in _IDLE:
            _refuse(key, "it has no effect on a trial, which ends with the validation recall and keeps no weights")
        if not span.choices:
            _check_bounds(key, span)
    if "protocol" in settings.tune and not set(_METRIC) <= settings.model_fields_set:
        _refuse("protocol", f"each protocol measures another recall unless [towers] sets {', '.join(_METRIC)}")


def _refuse(key: str, why: str) -> None:
    raise ConfigError(
        f"[towers.tune]: expected keys that change only what is learned, got {key}: {why}. Set {key} in [towers]."
    )


def _check_bounds(key: str, span: TuningRange) -> None:
    bounds = f"low = {span.low} and high = {span.high}"
    assert span.low is not None
    assert span.high is not None
    if not {int, float} & _types(key):
        raise ConfigError(f"towers.tune.{key}: expected choices, as its values are not numbers, got {bounds}.")
    if not (math.isfinite(span.low) and math.isfinite(span.high)):
        raise ConfigError(f"towers.tune.{key}: expected finite bounds, got {bounds}.")
    if int in _types(key) and math.ceil(span.low) > math.floor(span.high):
        raise ConfigError(f"towers.tune.{key}: expected a whole number between its bounds, got {bounds}.")


def _types(key: str) -> set[Any]:
    """The types a key's values may have; ``int | None`` has two."""
    annotations = [section.model_fields[key].annotation for section in CLASSES.values() if key in section.model_fields]
    unions = [get_args(one) if get_origin(one) in (Union, types.UnionType) else (one,) for one in annotations]
    return set(itertools.chain.from_iterable(unions))


def _mined(settings: TowersSettings, mine: Callable[[int], Mined | None]) -> Mined | None:
    """Enough hard negatives for every trial."""
    span = settings.tune.get("hard_negatives")
    if span is None:
        return mine(settings.hard_negatives) if settings.hard_negatives else None
    numbers = [value for value in (*span.choices, span.high) if isinstance(value, int | float)]
    most = math.floor(max(numbers, default=0))
    mined = mine(most) if most > 0 else None
    if most > 0 and mined is None:
        raise ConfigError(
            f"towers.tune.hard_negatives: expected a live version to mine up to {most} a user from, got none: all its "
            "values would have the same effect. Publish a version first, or leave the key out."
        )
    return mined


def _study(optuna: Any, journal: Path, made_with: dict[str, Any]) -> Any:
    """The study in the journal, or a new one if there is none.

    Raises:
        ConfigError: its trials are those of another search.
    """
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    named: dict[str, Any] = {"study_name": "towers", "storage": storage, "pruner": pruner}
    if "towers" in optuna.get_all_study_names(storage):
        study = optuna.load_study(**named)
    else:
        study = optuna.create_study(**named, direction="maximize")
    known, count = study.user_attrs.get(_MADE_WITH), len(study.get_trials(deepcopy=False))
    if known is None and not count:
        study.set_user_attr(_MADE_WITH, made_with)
    elif known != made_with:
        raise ConfigError(
            f"{journal}: expected the trials of this search, got {count} of another: {_differences(known, made_with)}. "
            "Restore these to continue it, or move the journal away to start over; nothing was changed."
        )
    return study


def _differences(known: dict[str, Any] | None, made_with: dict[str, Any]) -> str:
    if known is None:
        return "an older version wrote it, without what it was made with"
    names = sorted(name for name in {*known, *made_with} if known.get(name) != made_with.get(name))
    return "; ".join(
        f"{name} was {json.dumps(known[name]) if name in known else 'not given'}, "
        f"is {json.dumps(made_with[name]) if name in made_with else 'not given'}"
        for name in names
    )


def _tried(study: Any) -> list[Any]:
    """The trials with a result, including those with invalid values but not those that were killed."""
    trials = study.get_trials(deepcopy=False)
    return [one for one in trials if one.state.name in ("COMPLETE", "PRUNED") or _FAILED in one.user_attrs]


def _best(study: Any, journal: Path) -> Any:
    """The best trial.

    Raises:
        ConfigError: no trial was completed.
    """
    tried = _tried(study)
    if not any(trial.state.name == "COMPLETE" for trial in tried):
        raise ConfigError(
            f"{journal}: expected a completed trial, got {len(tried)} that failed. Fix [towers.tune], and "
            f"remove the journal. The last one was {tried[-1].user_attrs[_FAILED]}"
        )
    return study.best_trial


@dataclass(frozen=True)
class _Search:
    """What all trials share; ``mined`` has enough for the trial that needs most."""

    data: TrainingData
    settings: TowersSettings
    seed: int
    mined: Mined | None

    def check(self) -> None:
        """Refuses data that cannot rank trials, and ranges of keys that no trial reads.

        Raises:
            SchemaError: there is no valid split.
            ConfigError: a key has no effect, whatever is drawn for the others.
        """
        from towers.training.validation_recall import can_evaluate

        if not can_evaluate(self.data, SPLITS.index("valid")):
            raise SchemaError(
                f"{self.data.schema.dataset.name}: expected held-out events in the valid split to choose by, got none. "
                "Check [split] and [actions]."
            )
        for key in sorted(self._never_read()):
            _refuse(key, f"no trial reads it: only {read_by(key)} does")

    def _never_read(self) -> set[str]:
        """Keys without effect in every trial, whatever it draws for the keys that decide about them."""
        spans = {key: span for key, span in self.settings.tune.items() if key in deciding_keys()}
        never = set(self.settings.tune)
        for drawn in itertools.product(*(span.choices or (span.low, span.high) for span in spans.values())):
            never &= self._unread(dict(zip(spans, drawn, strict=True)))
        return never

    def _unread(self, values: dict[str, Any]) -> set[str]:
        """The tuned keys that nothing reads, given a trial's ``values``."""
        given = self._given() | values
        chosen = self._chosen(given) | given
        section = CLASSES.get(chosen["protocol"])
        if section is None:  # An invalid combination is reported by its trial.
            return set()
        # Not validated: only the keys that decide on others are looked at.
        settings = section.model_construct(**{key: value for key, value in chosen.items() if key in deciding_keys()})
        read = section.model_fields.keys() - settings.without_effect()
        return self.settings.tune.keys() - read

    def _given(self, mode: Literal["json", "python"] = "python") -> dict[str, Any]:
        """The keys set in ``[towers]`` itself, without those that the data decide."""
        given = self.settings.model_dump(mode=mode, exclude_unset=True, exclude={"tune"})
        chosen = self._chosen(given)
        return {key: value for key, value in given.items() if chosen.get(key) != value}

    def _chosen(self, given: dict[str, Any]) -> dict[str, Any]:
        schema = self.data.schema
        return chosen_by(given, schema.tables, schema.features, schema.split)

    def made_with(self, features: Path) -> dict[str, Any]:
        """Everything that the score of given values depends on, and the ranges they are drawn from."""
        settings = self.settings
        kept = {key: value for key, value in self._given("json").items() if key not in {*_IDLE, *settings.tune}}
        spans = {key: span.model_dump(mode="json", exclude_defaults=True) for key, span in settings.tune.items()}
        return {
            "features": read_manifest(features).fingerprint,
            "seed": self.seed,
            "live version of the hard negatives": None if self.mined is None else self.mined.version,
            **{f"towers.{key}": value for key, value in kept.items()},
            **{f"towers.tune.{key}": span for key, span in spans.items()},
        }

    def attempt(self, optuna: Any, study: Any, progress: Progress) -> None:
        """One trial, from its draw to its result."""
        trial = study.ask()
        try:
            study.tell(trial, self._score(trial, optuna.TrialPruned))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except TowerlineError as err:
            # Stored with the trial: without it, a killed trial looks the same.
            why = f"trial {trial.number} ({_assignments(trial.params)}): {err}".replace("\n", "; ")
            trial.set_user_attr(_FAILED, why)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            progress.line(f"tune: {why}")

    def _score(self, trial: Any, pruned: type[Exception]) -> float:
        """The best validation recall of one training with the trial's values."""
        from towers.training.job import train

        settings = self.settings_of({key: suggest(trial, key, span) for key, span in self.settings.tune.items()})
        best = 0.0

        def report(epoch: Epoch) -> None:
            """Reports the best score so far; ends a trial that has fallen behind."""
            nonlocal best
            best = max(best, epoch.valid or 0.0)
            trial.report(best, epoch.epoch)
            if trial.should_prune():
                raise pruned

        trained = train(self._data_of(settings), settings, seed=self.seed, report=report)
        return _best_of(trained.curves, settings)

    def settings_of(self, values: dict[str, Any]) -> TowersSettings:
        """The settings with a trial's values.

        Raises:
            ConfigError: a value, or a combination, is invalid.
            SchemaError: they do not fit the data.
        """
        return settings_for(self.data.schema, **{**self._given(), **self.read(values), "refit": False})

    def read(self, values: dict[str, Any]) -> dict[str, Any]:
        """A trial's values without those that have no effect given the others, such as a mean's decay."""
        unread = self._unread(values)
        return {key: value for key, value in values.items() if key not in unread}

    def _data_of(self, settings: TowersSettings) -> TrainingData:
        """The data with as many hard negatives as a trial needs: the first of those mined."""
        if self.mined is None or not settings.hard_negatives:
            return self.data
        return replace(self.data, mined=np.ascontiguousarray(self.mined.rows[:, : settings.hard_negatives]))

    def metric(self, values: dict[str, Any]) -> str:
        """The name of a trial's score: the number that early stopping uses."""
        from towers.training.validation_recall import selecting

        settings = self.settings_of(values)
        names = [f"{name}@{k}" for name in selecting(settings) for k in settings.select_k]
        return ("geometric mean of " if len(names) > 1 else "") + f"validation recall {', '.join(names)}"


def _best_of(curves: tuple[Epoch, ...], settings: TowersSettings) -> float:
    measured = [epoch.valid for epoch in curves if epoch.valid is not None]
    if not measured:
        raise ConfigError(
            f"expected an epoch whose validation recall is measured, got none with epochs = {settings.epochs} and "
            f"initializer = {settings.initializer!r}. Take epochs of 1 or more."
        )
    return max(measured)


def suggest(trial: Any, key: str, span: TuningRange) -> Any:
    """A value for ``key``: an integer if the settings' key is one."""
    if span.choices:
        return trial.suggest_categorical(key, list(span.choices))
    assert span.low is not None
    assert span.high is not None
    if int in _types(key):
        return trial.suggest_int(key, math.ceil(span.low), math.floor(span.high), log=span.log)
    return trial.suggest_float(key, span.low, span.high, log=span.log)


def _assignments(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in sorted(values.items()))


def to_toml(best: Any, tried: list[Any], search: _Search) -> str:
    """The best trial's values as a ``[towers]`` section, with comments on how they were found."""
    states = [trial.state.name for trial in tried]
    ends = {"COMPLETE": "to the end", "PRUNED": "ended early", "FAIL": "failed"}
    counts = ", ".join(f"{states.count(state)} {end}" for state, end in ends.items() if state in states)
    # JSON's numbers, strings and booleans are TOML's.
    lines = [f"{key} = {json.dumps(value)}" for key, value in sorted(search.read(best.params).items())]
    head = (
        f"# trial {best.number}, the best of {len(tried)} ({counts})",
        f"# {search.metric(best.params)}: {best.value:.5f}",
        "# Only the keys of [towers.tune]: all others are as in the TOML that was tuned, which these go into.",
    )
    return "\n".join([*head, "[towers]", *lines, ""])
