"""``towerline compact``."""

from __future__ import annotations

from towerline.commands.verb import Answer, Call

EXAMPLES = ("towerline compact --config ads.toml",)


def verb(call: Call) -> Answer:
    """Folds the deltas of the live version into a new version with a rebuilt index."""
    version = call.project.compact()
    return Answer(lines=[f"live: {version}"], facts={"version": version})
