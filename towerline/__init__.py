"""Towerline: two-tower retrieval for shopping ads, from raw tables to candidates.

    import towerline

    project = towerline.open("shop.toml")
    project.refresh()
    retriever = project.retriever()
    retriever.retrieve({"history": [1095275, 9878513]}, k=100).item_ids

An ad server needs the retriever alone: ``towerline.Retriever.open("gs://bucket/registry")``. Importing this package
does no work: each name is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import version

    from index.evaluation.pages import plots, release_notes
    from index.evaluation.pages import report as tables
    from index.evaluation.reports import Comparison, EvaluationReport
    from index.retrieval.candidates import Candidates
    from index.retrieval.retriever import Retriever
    from pipelines.contracts.errors import ArtifactError, ConfigError, GateError, SchemaError, TowerlineError
    from pipelines.progress import Progress
    from towerline.config import Config
    from towerline.jobs.check.finding import Finding
    from towerline.jobs.check.job import CheckResult
    from towerline.jobs.init.job import propose as init
    from towerline.project import Project
    from towerline.project import open_project as open

    __version__ = version("towerline")

# Name -> module and attribute; an empty attribute is the module itself.
_PLACES = {
    "open": ("towerline.project", "open_project"),
    "init": ("towerline.jobs.init.job", "propose"),
    "Project": ("towerline.project", "Project"),
    "CheckResult": ("towerline.jobs.check.job", "CheckResult"),
    "Finding": ("towerline.jobs.check.finding", "Finding"),
    "Config": ("towerline.config", "Config"),
    "Retriever": ("index.retrieval.retriever", "Retriever"),
    "Candidates": ("index.retrieval.candidates", "Candidates"),
    "Progress": ("pipelines.progress", "Progress"),
    "TowerlineError": ("pipelines.contracts.errors", "TowerlineError"),
    "ConfigError": ("pipelines.contracts.errors", "ConfigError"),
    "SchemaError": ("pipelines.contracts.errors", "SchemaError"),
    "ArtifactError": ("pipelines.contracts.errors", "ArtifactError"),
    "GateError": ("pipelines.contracts.errors", "GateError"),
    "EvaluationReport": ("index.evaluation.reports", "EvaluationReport"),
    "Comparison": ("index.evaluation.reports", "Comparison"),
    "plots": ("index.evaluation.pages.plots", ""),
    "tables": ("index.evaluation.pages.report", ""),
    "release_notes": ("index.evaluation.pages.release_notes", ""),
}

__all__ = [
    "ArtifactError",
    "Candidates",
    "CheckResult",
    "Comparison",
    "Config",
    "ConfigError",
    "EvaluationReport",
    "Finding",
    "GateError",
    "Progress",
    "Project",
    "Retriever",
    "SchemaError",
    "TowerlineError",
    "__version__",
    "init",
    "open",
    "plots",
    "release_notes",
    "tables",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("towerline")
    if name not in _PLACES:
        raise AttributeError(f"module 'towerline' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return __all__
