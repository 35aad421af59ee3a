"""Evaluation: how good retrieval is, for whom, where recall is lost, and what it does to the marketplace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.progress import SILENT, Progress

if TYPE_CHECKING:
    from index.evaluation.settings import EvaluationSettings


def run(
    bundle: Path | str,
    features: Path,
    settings: EvaluationSettings,
    out: Path,
    *,
    version: str | None = None,
    previous: Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Evaluates a version and writes ``report.json`` and ``report.html``; see ``index.evaluation.evaluate``.

    The import waits until it is needed, so that reading the settings does not load the pictures' libraries.
    """
    from index.evaluation.evaluate import evaluate

    return evaluate(bundle, features, settings, out, version=version, previous=previous, progress=progress)
