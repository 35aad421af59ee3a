"""``towerline train``."""

from __future__ import annotations

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline train --config ads.toml",
    "towerline train --config ads.toml --set towers.embedding_dim=128",
)


def verb(call: Call) -> Answer:
    """Features to a user tower and an item tower (TensorFlow Recommenders)."""
    return Answer(facts={"stage": "model"}, written=call.project.train())
