"""Warm nights: whether a night goes on from the live version's models, and which one each chain goes on from.

Reads the registry and the models below the run's folder. With rolling windows the backtest goes on from the last
backtest and the night from the last night, both or neither: a night that has learned in another way than its backtest
would not be what was measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.registry.bundle import Bundle
from index.registry.registry import Registry
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import open_artifact, read_manifest
from towerline.config import Config
from towerline.jobs.stages.chain import BACKTEST, FEATURES, MODEL, NIGHT, ONLY, Chain
from towerline.jobs.stages.stage import StageCall
from towerline.jobs.stages.towers import TrainStage

if TYPE_CHECKING:
    from towers.training.warm_start import WarmStart


def warm_start(chain: Chain, call: StageCall) -> WarmStart | None:
    """The model that a chain goes on from; None where it trains in full. Shows which, and why."""
    from towers.training.warm_start import WarmStart, epochs_found

    config, progress = call.config, call.progress
    if chain is NIGHT:
        backtest = read_manifest(config.work / BACKTEST.folder(MODEL))
        if not _is_warm(backtest) or (reason := _why_not(config, (NIGHT,))) is not None:
            why = f", because {reason}" if _is_warm(backtest) else ""
            progress.line(f"train: all events, for the {epochs_found(backtest)} epochs that the backtest found{why}")
            return None
    elif not config.refresh.warm_nights:
        return None
    else:
        reason = _why_not(config, (ONLY,) if chain is ONLY else (BACKTEST, NIGHT))
        if reason is not None:
            progress.line(f"train: in full, because {reason}")
            return None
    warm = WarmStart(config.work / chain.folder(MODEL), config.refresh.warm_epochs)
    progress.line(f"train: goes on from the live model, night {warm.nights()} of {config.refresh.warm_nights}")
    return warm


def _is_warm(model: Any) -> bool:
    from towers.training.warm_start import nights_of

    return nights_of(model) > 0


def _why_not(config: Config, chains: tuple[Chain, ...]) -> str | None:
    """Why the night cannot go on from the models of these chains; None where it can go on from all of them."""
    registry = Registry(config.registry)
    try:
        if registry.current_or_none() is None:
            return "nothing is live yet"
        live = registry.open(verify=False).bundle
        return next((why for chain in chains if (why := _why_full(config, chain, live)) is not None), None)
    except ArtifactError as err:
        return str(err)


def _why_full(config: Config, chain: Chain, live: Bundle) -> str | None:
    """Why the night cannot go on from one chain's model.

    Raises:
        ArtifactError: the model is missing or damaged.
    """
    from towers.training.warm_start import FORGOTTEN_USERS, forgotten_users, nights_of

    path, features = config.work / chain.folder(MODEL), config.work / FEATURES
    model = open_artifact(path, kind="model").manifest
    served = live.backtest if chain is BACKTEST else live
    if served is None:
        return "the live version has no backtest to go on from"
    if served.manifest.inputs[MODEL] != model.fingerprint:
        return "the last model is not the live one"
    if model.config != TrainStage(chain).settings(config):
        return "[towers] or the seed changed"
    if _features_of(path) != _features_of(features):
        return "the schema changed"
    if forgotten_users(read_manifest(features)) != model.facts.get(FORGOTTEN_USERS, 0):
        return "the list of forgotten users changed, and the last model has learned from their events"
    nights = nights_of(model)
    return f"{nights} nights have gone on from the last full training" if nights >= config.refresh.warm_nights else None


def _features_of(artifact: Path) -> dict[str, Any]:
    """What the towers' inputs depend on."""
    schema = json.loads((artifact / "schema.json").read_text())
    return {name: schema[name] for name in ("features", "history", "actions")}
