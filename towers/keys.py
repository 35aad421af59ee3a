"""Keys of ``[towers]`` that several protocols share with different defaults, and what a key can be marked with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.contracts.configuration import Section

HistoryEncoder = Literal["none", "mean", "recency", "attention", "transformer"]


class TuningRange(Section):
    """Where ``towerline tune`` looks for a key's value: between ``low`` and ``high``, or among ``choices``."""

    low: float | None = Field(default=None, description="Smallest value.")
    high: float | None = Field(default=None, description="Largest value.")
    log: bool = Field(default=False, description="Draw evenly on a log scale, as for rates.")
    choices: tuple[float | int | str | bool, ...] = Field(default=(), description="Values, in place of a range.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        bounded = self.low is not None and self.high is not None
        if bounded == bool(self.choices) or (self.low is None) != (self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError(f"log = true needs low > 0, got {self.low}")
        return self


@dataclass(frozen=True)
class OnlyWith:
    """Marks a key that only has an effect if another key has one of ``values``, or is above 0 if there are none."""

    key: str
    values: tuple[str, ...] = ()

    def holds(self, settings: object) -> bool:
        """Whether the marked key has an effect with these settings."""
        value = getattr(settings, self.key)
        return value in self.values if self.values else bool(value > 0)

    def __str__(self) -> str:
        return f"{self.key} = {' or '.join(map(repr, self.values))}" if self.values else f"{self.key} above 0"


ATTENDING = OnlyWith("history_encoder", ("attention", "transformer"))
TRANSFORMER = OnlyWith("history_encoder", ("transformer",))
_RECENCY = OnlyWith("history_encoder", ("recency",))
_POOLED = OnlyWith("history_encoder", ("mean", "recency"))

# The keys whose default depends on the protocol.
EmbeddingDim = Annotated[
    int,
    Field(
        ge=2,
        description="Dimensions of the exported vectors, of which the item bias takes one. More: higher recall, larger "
        "and slower index.",
    ),
]
ItemNorm = Annotated[
    Literal["unit", "free"],
    Field(
        description="unit: all item vectors have length 1, scores are cosines plus the item bias. free: an item that "
        "says more about a user has a longer vector, in histories and in the ranking."
    ),
]
ContentShare = Annotated[
    float, Field(ge=0.0, le=0.5, description="Share of the dimensions that only content features fill, not the id.")
]
Tastes = Annotated[
    int,
    Field(ge=1, description="Hidden units between the content of a user's history and the content the user likes."),
    _POOLED,
    OnlyWith("content_share"),
]
BiasStart = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="An item's bias starts at this times the log of its count. 0: popularity is learned.",
    ),
]
DecayDays = Annotated[
    tuple[Annotated[float, Field(ge=0.0)], ...],
    Field(
        min_length=1,
        description="Starting half-lives of the pooling heads, one head each, in days; then learned. 0: no decay.",
    ),
    _RECENCY,
]
ContentScale = Annotated[
    float, Field(ge=0.0, description="Starting norm of a content feature's rows, where an id's rows have norm 1.")
]
IdDropout = Annotated[
    float,
    Field(
        ge=0.0,
        lt=1.0,
        description="Probability of hiding an item's id in training, so that content alone must do. More: better "
        "vectors for new items, slightly worse ones for known items.",
    ),
]
Initializer = Annotated[
    Literal["random", "svd"],
    Field(description="svd: start from a closed form (matrix factors of the events). random: from random weights."),
]
Temperature = Annotated[
    float, Field(gt=0.0, description="The softmax's temperature. Lower: more weight on the hardest negatives.")
]
UniformNegatives = Annotated[
    int,
    Field(
        ge=0,
        description="Negatives per batch, drawn evenly from the catalogue. They make rare and new items negatives too.",
    ),
]
ActivityPower = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="A user's positives together weigh their number to this power. 0: all users weigh the same. 1: all "
        "positives do.",
    ),
]
BatchUsers = Annotated[int, Field(ge=1, description="Users per batch, each with all positives.")]
Epochs = Annotated[int, Field(ge=0, description="Maximum number of passes over the users. 0: the start alone.")]
MinSteps = Annotated[
    int, Field(ge=1, description="Minimum number of batches per epoch. With few users, each comes several times.")
]
LearningRate = Annotated[float, Field(gt=0.0, description="Adam's rate at the start; it falls to 2 % along a cosine.")]
# One of Adam's steps on a matrix of fan-in n moves an output n times as far as one on a row of its own.
SharedRate = Annotated[
    float,
    Field(
        ge=0.0,
        description="Factor on the learning rate for weights that many items or users share (matrices, content and "
        "profile features).",
    ),
]
# Items with ids can learn everything in these; their content is fitted after training.
ContentRate = Annotated[
    float,
    Field(
        ge=0.0,
        description="Further factor for the items' content features, if items have ids. 0: content is only fitted "
        "after training.",
    ),
]
Rowwise = Annotated[
    bool,
    Field(
        description="Adam without a first moment and with one second moment per row, for the rows of ids. Faster, with "
        "a third of the memory."
    ),
]
Epsilon = Annotated[
    float, Field(gt=0.0, description="Adam's epsilon. Rows with smaller gradients move less than the others.")
]
Patience = Annotated[
    int, Field(ge=1, description="Training stops after this many epochs without a better validation recall.")
]
SelectK = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    Field(min_length=1, description="Cut-offs of the validation recall that chooses the epoch (geometric mean)."),
]
Select = Annotated[
    Literal["all", "novel", "both"],
    Field(
        description="The validation recall that chooses the epoch: of all held-out items, of those that are new to the "
        "user, or the geometric mean of both."
    ),
]
MaxValidUsers = Annotated[
    int,
    Field(ge=1, description="Maximum number of users to validate with. More: slower, and a better choice of epoch."),
]
