"""The summary of a features artifact, from its manifest and its rejects."""

from __future__ import annotations

from pathlib import Path

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import SPLITS, Window
from pipelines.features.reporting.data_summary import DataSummary, RejectCount, UnknownIds
from pipelines.features.reporting.drift import Drift
from pipelines.tables.rejects.multi_line import MultiLineCells
from pipelines.tables.rejects.thresholds import examples_in


def summary_of(features_dir: Path) -> DataSummary:
    """What the features job found in the tables.

    Raises:
        ArtifactError: there is no such artifact, it cannot be read, or an older version wrote it.
    """
    facts = open_artifact(features_dir, kind="features", verify=False).manifest.facts
    if "new_in_test" not in facts:
        raise ArtifactError(f"{features_dir}: written by an older version. Run `towerline features` again.")
    examples = examples_in(features_dir / "rejects")
    rejects = [
        RejectCount(table, reason, rows, examples.get((table, reason)))
        for table, found in facts["tables"].items()
        for reason, rows in found["rejects"].items()
    ]
    drift, window = facts["drift"] or {"found": []}, Window.of(facts)
    return DataSummary(
        users=facts["counts"]["users"],
        items=facts["counts"]["items"],
        events={name: facts["counts"][name] for name in SPLITS},
        new_users=facts["new_in_test"]["users"],
        new_items=facts["new_in_test"]["items"],
        rows={name: found["rows"] for name, found in facts["tables"].items()},
        rejects=rejects,
        unknown={side: UnknownIds(**found) for side, found in facts["unknown"].items()},
        joined=facts["joined"],
        multi_line=[MultiLineCells(**found) for found in facts["multi_line"]],
        drift=[str(Drift(**found)) for found in drift["found"]],
        windows=None if window is None else str(window),
        later=facts["dropped_after_test_until"],
    )
