"""``towerline embed``."""

from __future__ import annotations

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline embed --config ads.toml",
    "towerline embed --config ads.toml -- --direct_num_workers=4",
)


def verb(call: Call) -> Answer:
    """Model and items to item vectors (Beam)."""
    return Answer(facts={"stage": "embeddings"}, written=call.project.embed())
