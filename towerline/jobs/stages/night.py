"""The stages of a whole night, in their order."""

from __future__ import annotations

from towerline.config import Config
from towerline.jobs.stages.bundle import BuildStage
from towerline.jobs.stages.chain import BACKTEST, NIGHT, ONLY, Chain
from towerline.jobs.stages.features import FeaturesStage, NightFeaturesStage
from towerline.jobs.stages.stage import Stage
from towerline.jobs.stages.towers import EmbedStage, TrainStage


def _stages_of(chain: Chain, features: Stage | None = None) -> tuple[Stage, ...]:
    return features or FeaturesStage(chain), TrainStage(chain), EmbedStage(chain), BuildStage(chain)


_STAGES = _stages_of(ONLY)
_ROLLING_STAGES = (*_stages_of(BACKTEST), *_stages_of(NIGHT, NightFeaturesStage(NIGHT)))


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages of a night, in their order; with rolling windows those of the backtest, then those of the night."""
    return _ROLLING_STAGES if config.split.rolls else _STAGES


def published_chain(config: Config) -> Chain:
    """The chain whose bundle is published."""
    return NIGHT if config.split.rolls else ONLY
