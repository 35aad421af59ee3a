"""The doctor: does this machine have what the pipeline, the training and the retriever need?

Looks at versions, CPU flags and switches without importing anything heavy; each finding says what to do.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One check: its name, its state, what was found, and what to do unless it is ok."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Requirement:
    """A package and the version that works (``2.20.*``); ``extra`` names the part of the project that needs it."""

    package: str
    wanted: str
    extra: str


# The set that works together (TensorFlow 2.21 and ScaNN 1.4.2's op library exclude each other).
REQUIREMENTS = (
    Requirement("numpy", "2.*", "base"),
    Requirement("pyarrow", "*", "base"),
    Requirement("scann", "1.4.2", "base"),
    Requirement("ai-edge-litert", "2.*", "base"),
    Requirement("apache-beam", "2.77.*", "pipelines"),
    Requirement("tensorflow", "2.20.*", "towers"),
    Requirement("tf-keras", "2.20.*", "towers"),
    Requirement("tensorflow-recommenders", "0.7.7", "towers"),
)
# What the published ScaNN wheel is compiled for.
CPU_FLAGS = ("avx2", "fma")


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
        *(_package(requirement, version_of(requirement.package)) for requirement in REQUIREMENTS),
        _legacy_keras(environment),
        _cpu(cpuinfo),
    )


def _package(requirement: Requirement, version: str | None) -> Finding:
    check = f"{requirement.package} ({requirement.extra})"
    if version is None:
        if requirement.extra == "base":
            return Finding(check, "problem", "not installed", "pip install towerline -c requirements.lock")
        remedy = f"where {requirement.extra} runs: pip install 'towerline[{requirement.extra}]' -c requirements.lock"
        return Finding(check, "warning", "not installed", remedy)
    if fnmatch.fnmatch(version, requirement.wanted):
        return Finding(check, "ok", version)
    remedy = f"pip install '{requirement.package}=={requirement.wanted}': other versions break each other"
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
