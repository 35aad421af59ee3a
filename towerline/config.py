"""The whole configuration: one TOML with the data set's schema and a section for each later stage.

``pipelines.contracts.schema`` defines what describes the data; ``[towers]``, ``[index]``, ``[retriever]``, ``[gates]``,
``[refresh]``, ``[evaluation]``, ``[alerts]`` and ``[replay]`` are defined by the packages that read them. This module
puts them together, so that a mistake in any section is found by every verb before work begins. Imports neither Beam,
TensorFlow nor ScaNN.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from index.evaluation.settings import EvaluationSettings
from index.settings import GatesSettings, IndexSettings, RefreshSettings, RetrieverSettings
from pipelines.contracts.configuration import Section, describe
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.schema import DatasetSchema, resolve_paths
from towerline.settings import AlertsSettings, ReplaySettings
from towers.settings import CLASSES, TowersSettings, chosen_by


class Paths(Section):
    """Where a run keeps its artifacts."""

    work: Path | None = Field(
        default=None, description="The run's folder. Relative paths start at the TOML's folder. Not set: `runs/NAME`."
    )
    registry: str | None = Field(
        default=None, description="The published versions: a folder or an fsspec URL. Not set: `registry` in `work`."
    )


class Config(DatasetSchema):
    """A whole TOML."""

    paths: Paths = Paths()
    # Empty: the recipe for the data, as is what is left out of it.
    towers: TowersSettings = Field(default_factory=dict, validate_default=True)
    index: IndexSettings = IndexSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    gates: GatesSettings = GatesSettings()
    refresh: RefreshSettings = RefreshSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    alerts: AlertsSettings = AlertsSettings()
    replay: ReplaySettings = ReplaySettings()

    @field_validator("towers", mode="before")
    @classmethod
    def _for_the_data(cls, given: object, read: ValidationInfo) -> object:
        """``[towers]`` with the defaults that depend on the data, such as the protocol."""
        if not isinstance(given, dict):
            return given
        if not {"tables", "features", "split"} <= read.data.keys():
            # What describes the data is wrong, and refused with its own error.
            return CLASSES["windows"]()
        return chosen_by(given, *(read.data[name] for name in ("tables", "features", "split"))) | given

    @model_validator(mode="after")
    def _towers_fit_the_data(self) -> Self:
        self.towers.refuse_misfits(self)
        return self

    def schema_only(self) -> DatasetSchema:
        """The part that ``pipelines`` knows: what describes the data."""
        return DatasetSchema.model_validate({name: getattr(self, name) for name in DatasetSchema.model_fields})

    @property
    def work(self) -> Path:
        """The run's folder; default: ``runs/<dataset name>`` below the current folder."""
        return self.paths.work if self.paths.work is not None else Path("runs") / self.dataset.name

    @property
    def registry(self) -> str:
        """The registry's folder or URL."""
        return self.paths.registry if self.paths.registry is not None else str(self.work / "registry")


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    work: Path | None = None,
    registry: str | None = None,
    *,
    tables: Mapping[str, Path] | None = None,
) -> Config:
    """Reads a TOML.

    Args:
        path: the file; relative paths in it start at its folder.
        overrides: ``key.of.section=value`` each; the value is read as TOML, or as text where it is none.
        work: the run's folder, before ``paths.work``.
        registry: the registry's folder or URL, before ``paths.registry``.
        tables: Parquet files in place of the tables' own, by name.

    Raises:
        ConfigError: the file is missing or no TOML, or a key is unknown, missing or of a wrong type.
    """
    raw = _read_toml(path)
    for override in overrides:
        raw = with_override(raw, override)
    folder = path.resolve().parent
    raw = _resolved(_resolved(resolve_paths(raw, folder), "paths", folder), "alerts", folder, ("metrics_file",))
    given = {"work": None if work is None else str(work), "registry": registry}
    raw = _with(raw, "paths", {name: value for name, value in given.items() if value is not None})
    for name, file in (tables or {}).items():
        raw = {**raw, "tables": _with(raw.get("tables", {}), name, {"path": str(file), "format": "parquet"})}
    try:
        return Config.model_validate(raw)
    except ValidationError as err:
        raise ConfigError(describe(err, str(path), Config)) from err


def _with(raw: dict[str, Any], section: str, values: dict[str, Any]) -> dict[str, Any]:
    """``raw`` with some values of a section replaced. What is no section is left for the model to refuse."""
    found = raw.get(section, {})
    return {**raw, section: {**found, **values}} if values and isinstance(found, dict) else raw


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: expected a TOML file, found none. Give its path with --config.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: not valid TOML: {err}. Correct the line.") from err


def _resolved(raw: dict[str, Any], section: str, folder: Path, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """``raw`` with the relative paths of a section's keys (None: all of them) starting at ``folder``."""
    found = raw.get(section)
    if not isinstance(found, dict):
        return raw
    paths = {key: value for key, value in found.items() if isinstance(value, str) and (keys is None or key in keys)}
    resolved = {key: str((folder / value).resolve()) for key, value in paths.items() if "://" not in value}
    return {**raw, section: {**found, **resolved}}


def with_override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """Returns ``raw`` with one ``key.of.section=value`` set.

    Raises:
        ConfigError: there is no ``=``, or a part of the key names a value that is not a section.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: expected key=value, for example towers.embedding_dim=128")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return _set(raw, parts, value, override)


def _set(section: dict[str, Any], parts: list[str], value: object, override: str) -> dict[str, Any]:
    if len(parts) == 1:
        return {**section, parts[0]: value}
    inner = section.get(parts[0], {})
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {override!r}: {parts[0]!r} is a value, not a section")
    return {**section, parts[0]: _set(inner, parts[1:], value, override)}


def plain(config: BaseModel) -> dict[str, Any]:
    """The configuration as JSON-able values, for manifests and fingerprints."""
    values: dict[str, Any] = json.loads(config.model_dump_json())
    return values
