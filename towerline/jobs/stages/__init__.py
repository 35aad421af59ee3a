"""The stages of a night, each once: its folder, what it is made from, and what it runs.

``features`` reads the tables, ``train`` the features, ``embed`` the model and the features, ``build`` all three. With
rolling windows they run twice: the backtest's chain learns without the held-out events, the night's from all events
(docs/nightly.md). The single verbs and the nightly job use the same table. The modules that do the work are imported
when a stage runs.
"""

from towerline.jobs.stages.chain import BACKTEST, BUNDLE, EMBEDDINGS, FEATURES, MODEL, NIGHT, ONLY, Chain
from towerline.jobs.stages.features import FeaturesStage, NightFeaturesStage
from towerline.jobs.stages.night import published_chain, stages_of
from towerline.jobs.stages.stage import Stage, StageCall

__all__ = [
    "BACKTEST",
    "BUNDLE",
    "EMBEDDINGS",
    "FEATURES",
    "MODEL",
    "NIGHT",
    "ONLY",
    "Chain",
    "FeaturesStage",
    "NightFeaturesStage",
    "Stage",
    "StageCall",
    "published_chain",
    "stages_of",
]
