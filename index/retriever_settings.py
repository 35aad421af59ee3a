"""The section ``[retriever]`` of the TOML: how requests are answered where a call does not say.

Reads and writes nothing.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipelines.contracts.schema import Section

# Where a bundle keeps them.
RETRIEVER_FILE = "retriever.json"


class RetrieverSettings(Section):
    """``[retriever]``.

    own_items_share: share of the k places for the user's own earlier items (0: the towers alone; their answer to such
        an item is not changed, it may come from the towers all the same).
    own_items_half_life_days: after which an event counts half.
    new_items_share: share of the k places for ads without an event in train, the best of them for the user by the
        towers (0: they compete with all others, which have sold). Fresh ads of deltas are such ads.
    rule_cache_mib: memory for what rules leave; a rule over a million items takes 1 to 5 MiB, and up to
        ``rule_vectors_mib`` more for the vectors of its items.
    rule_vectors_mib: a rule that leaves more vectors than this is answered without a copy of them.
    """

    own_items_share: float = Field(default=0.0, ge=0.0, le=1.0)
    own_items_half_life_days: float = Field(default=30.0, gt=0.0)
    new_items_share: float = Field(default=0.0, ge=0.0, le=1.0)
    rule_cache_mib: float = Field(default=256.0, ge=0.0)
    rule_vectors_mib: float = Field(default=64.0, ge=0.0)

    @model_validator(mode="after")
    def _shares_of_one(self) -> Self:
        if self.own_items_share + self.new_items_share > 1.0:
            raise ValueError(
                "expected own_items_share and new_items_share of 1 or less together, got "
                f"{self.own_items_share} and {self.new_items_share}"
            )
        return self

    @property
    def blends(self) -> bool:
        """Whether an answer has places for other sources than the towers."""
        return self.own_items_share > 0.0 or self.new_items_share > 0.0
