"""The doctor: does this machine have what the pipeline, the training and the retriever need?

Looks at versions, CPU flags and switches without importing anything heavy; each finding says what to do.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipelines.contracts.errors import TowerlineError
from pipelines.user_folders import CACHE_VARIABLE, cache_folder, can_be_written

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One check: its name, its state, what was found, and what to do unless it is ok."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Needed:
    """A package, the versions that work (``==2.20.*``), and the extra that needs it; "base" is the retriever."""

    package: str
    versions: SpecifierSet
    extra: str


# The extra of a requirement that has none is the empty text.
_EXTRAS = ("", "pipelines", "towers")
# What the published ScaNN wheel is compiled for.
CPU_FLAGS = ("avx2", "fma")


def needed() -> tuple[Needed, ...]:
    """What the installed package asks for: all of the base, and of the other extras what is pinned to a version.

    The pins are those that work together: TensorFlow 2.21 and the op library of ScaNN 1.4.2 exclude each other.
    """
    found: dict[str, Needed] = {}
    for text in importlib.metadata.requires("towerline") or ():
        requirement = Requirement(text)
        pinned = any(one.operator == "==" for one in requirement.specifier)
        for extra in _EXTRAS:
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if wanted and (pinned or not extra):
                # What several parts need is listed with the first.
                found.setdefault(requirement.name, Needed(requirement.name, requirement.specifier, extra or "base"))
                break
    return tuple(found.values())


def installed_version(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine(
    version_of: Callable[[str], str | None] = installed_version,
    environment: Mapping[str, str] = os.environ,
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> tuple[Finding, ...]:
    """Returns all findings; the arguments describe the machine, so that tests can describe another one."""
    return (
        *(_package(one, version_of(one.package)) for one in needed()),
        _legacy_keras(environment),
        _cpu(cpuinfo),
        _cache(environment),
    )


def _package(one: Needed, version: str | None) -> Finding:
    check = f"{one.package} ({one.extra})"
    if version is None:
        if one.extra == "base":
            return Finding(check, "problem", "not installed", "pip install towerline -c requirements.lock")
        remedy = f"where {one.extra} runs: pip install 'towerline[{one.extra}]' -c requirements.lock"
        return Finding(check, "warning", "not installed", remedy)
    if one.versions.contains(version, prereleases=True):
        return Finding(check, "ok", version)
    remedy = f"pip install '{one.package}{one.versions}': other versions break each other"
    return Finding(check, "problem", version, remedy)


def _legacy_keras(environment: Mapping[str, str]) -> Finding:
    """TFRS is written for Keras 2; ``towers`` sets the switch itself unless somebody set it to something else."""
    value = environment.get("TF_USE_LEGACY_KERAS")
    if value in (None, "1", "true", "True"):
        return Finding("TF_USE_LEGACY_KERAS", "ok", "set by towers" if value is None else value)
    return Finding("TF_USE_LEGACY_KERAS", "problem", value, "export TF_USE_LEGACY_KERAS=1, or unset it")


def _cpu(cpuinfo: Path) -> Finding:
    if not cpuinfo.is_file():
        return Finding(
            "cpu", "warning", "flags unknown", "ScaNN has wheels for Linux only; elsewhere exact search serves"
        )
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    missing = [flag for flag in CPU_FLAGS if flag not in flags]
    if missing:
        return Finding(
            "cpu", "problem", f"without {', '.join(missing)}", "ScaNN needs them: set index.engine = 'exact'"
        )
    return Finding("cpu", "ok", ", ".join([*CPU_FLAGS, *(["avx512f"] if "avx512f" in flags else [])]))


def _cache(environment: Mapping[str, str]) -> Finding:
    """Where copies of an object store's versions are kept: below the temporary folder they may be gone tomorrow."""
    remedy = f"set {CACHE_VARIABLE} to a folder that this user can write"
    try:
        folder = cache_folder(environment)
    except TowerlineError as err:
        return Finding("cache", "warning", str(err), remedy)
    if not can_be_written(folder):
        return Finding("cache", "warning", f"{folder} cannot be written", remedy)
    if folder.is_relative_to(tempfile.gettempdir()) and CACHE_VARIABLE not in environment:
        return Finding("cache", "warning", f"{folder}, since there is no home to write to", remedy)
    return Finding("cache", "ok", str(folder))
