"""Libraries that an extra of the package brings: what is missing is named by its extra, not by its module.

What each stage of a night needs is listed here, so that a refresh finds it before its first stage. Looks libraries up
without importing them.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from index.evaluation.settings import EvaluationSettings
from pipelines.contracts.errors import ConfigError

# What needs libraries: the stages of a night, and the report.
Need = Literal["features", "train", "embed", "build", "publish", "evaluate"]

# Top-level modules to the extra that brings them.
_EXTRAS = {
    "apache_beam": "pipelines",
    "tensorflow": "towers",
    "tf_keras": "towers",
    "tensorflow_recommenders": "towers",
    "implicit": "towers",
    "sklearn": "towers",
    "scipy": "evaluation",
    "threadpoolctl": "evaluation",
    "matplotlib": "evaluation",
    "jinja2": "evaluation",
    "optuna": "tune",
    "s3fs": "s3",
    "umap": "umap",
}
_TOWERS = ("tensorflow", "tf_keras", "tensorflow_recommenders", "scipy", "sklearn", "threadpoolctl")
# Extra to its modules, by what needs them.
_NEEDED: Mapping[Need, Mapping[str, tuple[str, ...]]] = {
    "features": {"pipelines": ("apache_beam",)},
    "train": {"towers": (*_TOWERS, "implicit")},
    "embed": {"pipelines": ("apache_beam",), "towers": ("tensorflow",)},
    "build": {"towers": ("tensorflow",)},
    "publish": {},
    "evaluate": {"evaluation": ("matplotlib", "jinja2", "scipy", "threadpoolctl")},
}
# Baselines of a report that are fitted by a library of the extra towers.
_FITTED = {"item_knn", "als"}


@contextlib.contextmanager
def extras_named() -> Iterator[None]:
    """Within it, a library that is missing is refused by its extra.

    Raises:
        ConfigError: a library of an extra is not installed; the message has the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        module = (err.name or "").partition(".")[0]
        if module not in _EXTRAS:
            raise
        raise ConfigError(
            f"this needs {module}, which is not installed. Install it with: {pip_line([_EXTRAS[module]])}"
        ) from err


def pip_line(extras: Iterable[str]) -> str:
    """The command that installs the extras."""
    return f"pip install 'towerline[{','.join(dict.fromkeys(extras))}]'"


def missing_extras(
    needs: Iterable[Need], *, sharded: bool = False, evaluation: EvaluationSettings | None = None
) -> dict[str, tuple[str, ...]]:
    """The extras that are not installed, each with its libraries that are missing.

    Args:
        needs: the stages that will run.
        sharded: whether the index is built in shards, by Beam.
        evaluation: what a report measures, where ``needs`` has ``evaluate``.
    """
    missing: dict[str, list[str]] = {}
    for need in needs:
        for extra, modules in _needed(need, sharded=sharded, evaluation=evaluation):
            absent = [module for module in modules if not is_installed(module)]
            if absent:
                missing.setdefault(extra, []).extend(absent)
    return {extra: tuple(dict.fromkeys(modules)) for extra, modules in missing.items()}


def _needed(
    need: Need, *, sharded: bool, evaluation: EvaluationSettings | None
) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from _NEEDED[need].items()
    if need == "build" and sharded:
        yield "pipelines", ("apache_beam",)
    if need == "evaluate" and evaluation is not None:
        if _FITTED & set(evaluation.baselines):
            yield "towers", ("implicit",)
        if evaluation.map == "umap":
            yield "umap", ("umap",)


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
