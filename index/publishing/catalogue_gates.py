"""Gates on the catalogue, its vectors and the golden probes. They ask for no user.

Each returns None where it is switched off.
"""

from __future__ import annotations

import numpy as np

from index.publishing.case import Case
from index.publishing.verdict import Verdict

# A smaller catalogue may grow as one of this size: ten new ads are no accident, even if there were only ten.
_SMALL_CATALOGUE = 100


def items(case: Case) -> Verdict | None:
    """The catalogue is large enough."""
    threshold = case.settings.items
    if threshold is None:
        return None
    return Verdict.at_least("items", case.bundle.num_items, threshold, "features", "items in the catalogue")


def items_change(case: Case) -> Verdict | None:
    """The catalogue has about the live version's size."""
    gate, threshold = "items against live", case.settings.items_change
    if threshold is None:
        return None
    if case.live is None:
        return Verdict.skipped(gate, None, "features", "nothing is live yet")
    now, before = case.bundle.num_items, case.live.num_items
    change = (now - before) / max(before, _SMALL_CATALOGUE) if now > before else (before - now) / before
    return Verdict.at_most(gate, change, threshold, "features", f"{before:,} to {now:,}")


def norms(case: Case) -> Verdict | None:
    """Vectors are finite, and about as long as the live version's of the same space."""
    gate, threshold = "vector lengths", case.settings.norm_change
    if threshold is None:
        return None
    lengths = np.linalg.norm(case.bundle.vectors, axis=1)
    wrong = int((~np.isfinite(lengths)).sum())
    if wrong:
        return Verdict(gate, "failed", float(wrong), 0.0, "embed", f"{wrong} vectors with NaN or infinity")
    if case.live is None or case.live.space != case.bundle.space:
        # Lengths in two spaces cannot be compared; only finiteness can be checked.
        detail = f"all finite, mean {lengths.mean():.3g}, no live version of the same space"
        return Verdict(gate, "passed", None, threshold, "embed", detail)
    before = float(np.linalg.norm(case.live.vectors, axis=1).mean())
    change = abs(float(lengths.mean()) - before) / before if before > 0 else float(lengths.mean() > 0)
    return Verdict.at_most(gate, change, threshold, "embed", f"mean {before:.3g} to {lengths.mean():.3g}, all finite")


def probes(case: Case) -> Verdict | None:
    """The golden probes get the stored scores."""
    threshold = case.settings.probe_score_error
    if threshold is None:
        return None
    stored = case.bundle.probes
    vectors = stored.vectors
    if any(stored.records):
        vectors = case.bundle.record_embedder().vectors(stored.records)
    found = case.bundle.exact.search_batch(vectors, stored.neighbors.rows.shape[1])
    error = float(np.abs(found.scores - stored.neighbors.scores).max(initial=0.0))
    detail = f"largest score difference of {len(vectors)} probes"
    return Verdict.at_most("golden probes", error, threshold, "build", detail)
