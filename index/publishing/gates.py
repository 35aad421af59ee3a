"""The gates: conditions that a bundle must meet to go live, each with a threshold, a figure and a verdict.

Reads the new bundle, the live one and the features. A verdict names the stage at fault, so that the person on call
knows where to look.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from index.publishing.answer_gates import (
    agreement,
    ann_recall,
    churn,
    latency,
    reachable_advertisers,
    reachable_items,
    recall_against_live,
    recall_by_category,
)
from index.publishing.case import Case
from index.publishing.catalogue_gates import items, items_change, norms, probes
from index.publishing.verdict import Verdict
from index.registry.bundle import Bundle
from index.settings import GatesSettings

_GATES: tuple[Callable[[Case], Verdict | None], ...] = (
    items,
    items_change,
    norms,
    probes,
    ann_recall,
    reachable_items,
    reachable_advertisers,
    latency,
    recall_against_live,
    recall_by_category,
    agreement,
    churn,
)


def judge(
    bundle: Bundle, live: Bundle | None, features: Path, settings: GatesSettings, *, night: Path | None = None
) -> tuple[Verdict, ...]:
    """Runs every gate that is not switched off.

    Args:
        bundle: the new one.
        live: the live one; None if nothing is live.
        features: those of the new bundle's backtest, with the held-out events; those it was built from if it has none.
        settings: thresholds.
        night: the features of all events up to the night, for what users would see now; None: ``features``.

    Raises:
        ArtifactError: features, or a part of a bundle, are missing or damaged.
        SchemaError: the bundle's own towers cannot read the users of the features.
    """
    case = Case.of(bundle, live, features, settings, night)
    return tuple(verdict for gate in _GATES if (verdict := gate(case)) is not None)
