"""Publishes a bundle if the gates let it: ``towerline publish``.

Reads a staged bundle, the features it was built from and the registry; writes a version and moves CURRENT, or changes
nothing. The verdicts, and the reason if a failed gate was overruled, go into the published manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.publishing.gates import judge
from index.publishing.verdict import Verdict
from index.registry.bundle import Bundle
from index.registry.registry import Registry, unless_moved
from index.settings import GatesSettings
from pipelines.contracts.errors import ConfigError, GateError
from pipelines.progress import SILENT, Progress


@dataclass(frozen=True)
class Publication:
    """The outcome. ``version`` is None after a dry run."""

    version: str | None
    verdicts: tuple[Verdict, ...]
    forced: bool

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The verdicts that failed."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome == "failed")


@dataclass(frozen=True)
class Options:
    """How to publish.

    dry_run: let the gates decide, publish nothing. force_reason: publish against failed gates, and say why.
    keep: number of versions to keep; None keeps all.
    """

    dry_run: bool = False
    force_reason: str | None = None
    keep: int | None = None


def run(
    bundle: Path,
    features: Path,
    registry: str | Path,
    gates: GatesSettings,
    options: Options | None = None,
    *,
    night: Path | None = None,
    progress: Progress = SILENT,
) -> Publication:
    """Runs the gates and publishes.

    Args:
        bundle: the staged bundle.
        features: those of its backtest, or those it was built from if it has none; the panel's users and held-out
            events come from them.
        registry: a folder or an fsspec URL.
        gates: thresholds.
        options: dry run, force, retention.
        night: with rolling windows, the features of all events up to the night; see ``gates.judge``.
        progress: shows one line per gate.

    Raises:
        ArtifactError: the bundle or the live version is damaged.
        ConfigError: a force without a reason.
        GateError: a gate failed and no reason overrules it; CURRENT has not moved.
        MovedError: another version became live while the gates judged, three times; nothing was published.
    """
    chosen = options or Options()
    if chosen.force_reason is not None and not chosen.force_reason.strip():
        raise ConfigError("--force: expected a reason, got none. It is recorded in the published manifest.")
    opened = Registry(registry)
    candidate = _Candidate(bundle, features, night)
    return unless_moved(lambda: _judged_and_published(candidate, opened, gates, chosen, progress))


@dataclass(frozen=True)
class _Candidate:
    """What is judged. See ``run``."""

    bundle: Path
    features: Path
    night: Path | None


def _judged_and_published(
    new: _Candidate, registry: Registry, gates: GatesSettings, options: Options, progress: Progress
) -> Publication:
    """Publishes if the gates let it, and if the version that they compared it with is still live.

    Raises:
        GateError: a gate failed.
        MovedError: another version has become live meanwhile.
    """
    with progress.waiting("gates"):
        live = None if registry.current_or_none() is None else registry.open()
        before = None if live is None else live.bundle
        verdicts = judge(Bundle.open(new.bundle), before, new.features, gates, night=new.night)
    for verdict in verdicts:
        progress.line(verdict.line)
    failed = [verdict for verdict in verdicts if verdict.outcome == "failed"]
    replaces = None if live is None else live.version
    if options.dry_run:
        return Publication(None, verdicts, forced=False)
    if failed and options.force_reason is None:
        raise GateError(_refusal(failed, replaces), [verdict.as_fact() for verdict in verdicts])
    with progress.waiting("publish"):
        version = registry.publish(
            new.bundle,
            facts=_facts(verdicts, failed, options, replaces),
            keep=options.keep,
            instead_of=replaces,
        )
    return Publication(version, verdicts, forced=bool(failed))


def rollback(registry: str | Path, version: str | None = None) -> str:
    """Makes an older version live. Changes of ads are in force on every version, so that nothing is copied.

    Args:
        registry: a folder or an fsspec URL.
        version: None is the newest one older than the live one.

    Returns:
        The version that is live now.

    Raises:
        ArtifactError: there is no such version, none older, or it is damaged; the live one stays.
    """
    return Registry(registry).rollback(version)


def _facts(
    verdicts: tuple[Verdict, ...], failed: list[Verdict], options: Options, replaces: str | None
) -> dict[str, Any]:
    forced = {"forced_reason": options.force_reason} if failed else {}
    return {"gates": [verdict.as_fact() for verdict in verdicts], "replaces": replaces, **forced}


def _refusal(failed: list[Verdict], live: str | None) -> str:
    lines = "\n".join(verdict.line for verdict in failed)
    stages = ", ".join(sorted({verdict.stage for verdict in failed}))
    return (
        f"{len(failed)} gate(s) failed, at fault: {stages}. {live or 'nothing'} stays live.\n{lines}\n"
        "Fix the stage, change the threshold in [gates], or publish with --force REASON."
    )
