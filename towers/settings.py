"""The section ``[towers]`` of the TOML: what is learned, and how. A class per protocol; its defaults are the recipe.

Imports no TensorFlow, so that a configuration is checked before anything heavy starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from pipelines.contracts.configuration import Section, describe
from pipelines.contracts.errors import ConfigError, SchemaError
from pipelines.contracts.kinds import CountFeature, TimeSinceFeature
from pipelines.contracts.schema import DatasetSchema, Features, Side, Split, Tables
from towers.keys import (
    ATTENDING,
    TRANSFORMER,
    ActivityPower,
    BatchUsers,
    BiasStart,
    ContentRate,
    ContentScale,
    ContentShare,
    DecayDays,
    EmbeddingDim,
    Epochs,
    Epsilon,
    HistoryEncoder,
    IdDropout,
    Initializer,
    ItemNorm,
    LearningRate,
    MaxValidUsers,
    MinSteps,
    OnlyWith,
    Patience,
    Rowwise,
    Select,
    SelectK,
    SharedRate,
    Tastes,
    Temperature,
    TuningRange,
    UniformNegatives,
)

Protocol = Literal["windows", "positions", "sets"]
SIDES: tuple[Side, ...] = ("user", "item")


class CommonSettings(Section):
    """The keys of all protocols. What has no default here has one per protocol."""

    protocol: Protocol
    embedding_dim: EmbeddingDim
    item_bias: bool = Field(
        default=True, description="Give each item a bias, which takes one of the dimensions. Off: scores are products."
    )
    item_norm: ItemNorm
    content_share: ContentShare
    bias_start: BiasStart
    history_encoder: HistoryEncoder
    layers: Annotated[int, TRANSFORMER] = Field(default=2, ge=1, description="Layers of the transformer.")
    heads: Annotated[int, ATTENDING] = Field(
        default=2, ge=1, description="Attention heads. Must divide `embedding_dim`, less one with `item_bias`."
    )
    dropout: Annotated[float, TRANSFORMER] = Field(
        default=0.2, ge=0.0, lt=1.0, description="Dropout of the transformer."
    )
    content_scale: ContentScale
    text_pool: Literal["bag", "attention"] = Field(
        default="bag", description="How the words of a text are weighted: by rarity, or by learned weights as well."
    )
    id_dropout: IdDropout
    initializer: Initializer

    temperature: Temperature
    learned_temperature: bool = Field(default=False, description="Learn the temperature, starting from `temperature`.")
    uniform_negatives: UniformNegatives
    in_batch_negatives: int | None = Field(
        default=None,
        ge=0,
        description="Maximum number of the batch's positives used as negatives of other users. Lower it for speed with "
        "large batches. Not set: all.",
    )
    hard_negatives: int = Field(
        default=0,
        ge=0,
        description="Hard negatives per user, mined from the live version before training. Items the user ever "
        "interacted with are excluded.",
    )
    negative_actions: dict[str, Annotated[float, Field(gt=0.0)]] = Field(
        default_factory=dict,
        description="Actions that make an item a negative, with the number of items each counts as, for example "
        "{ impression = 2.0 }. Their weight in `[actions]` must be 0.",
    )

    batch_users: BatchUsers
    epochs: Epochs
    learning_rate: LearningRate
    shared_rate: SharedRate
    content_rate: ContentRate
    rowwise: Rowwise
    epsilon: Epsilon
    mixed_precision: bool = Field(
        default=False,
        description="Multiply users and candidates in bfloat16. Weights, sums and the exported towers stay float32. "
        "For GPUs.",
    )
    clip_norm: float | None = Field(
        default=None, gt=0.0, description="Maximum norm of the whole gradient. Not set: no clipping."
    )
    patience: Patience
    select_k: SelectK
    select: Select
    max_valid_users: MaxValidUsers
    refit: bool = Field(
        default=True,
        description="After the best epoch is known, train again on train and validation events for that many epochs.",
    )
    checkpoint_minutes: float = Field(
        default=2.0,
        ge=0.0,
        description="Minimum time between two checkpoints, in minutes. With several workers there is one per epoch.",
    )
    tune: dict[str, TuningRange] = Field(
        default_factory=dict, description="Keys of `[towers]` for `towerline tune` to vary, each with its range."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.uniform_negatives or self.in_batch_negatives is None or self.in_batch_negatives):
            raise ValueError("expected uniform_negatives or in_batch_negatives above 0: without negatives all is right")
        unknown = sorted(key for key in self.tune if not any(key in cls.model_fields for cls in CLASSES.values()))
        if unknown or "tune" in self.tune:
            raise ValueError(f"tune: expected keys of [towers], got {', '.join(unknown or ['tune'])}")
        if self.history_encoder == "transformer" and self.vector_dim % self.heads:
            raise ValueError(
                f"heads: expected a divisor of the unit vector's {self.vector_dim} dimensions (embedding_dim, less one "
                f"with item_bias), got {self.heads}. Change either."
            )
        fields = type(self).model_fields
        for key in self.without_effect():
            if key in self.model_fields_set and getattr(self, key) != fields[key].default:
                wanted = " and ".join(str(mark) for mark in _marks(type(self))[key] if not mark.holds(self))
                raise ValueError(f"{key}: only {wanted} reads it. Leave it out.")
        return self

    def without_effect(self) -> tuple[str, ...]:
        """The keys of this protocol that have no effect, whatever their value, because of what other keys say."""
        return tuple(
            key for key, marks in _marks(type(self)).items() if marks and not all(mark.holds(self) for mark in marks)
        )

    def refuse_misfits(self, schema: DatasetSchema) -> None:
        """Checks these settings against the data they are for.

        Raises:
            SchemaError: they ask for what the data set does not have.
        """
        wrong = [name for name in self.negative_actions if schema.actions.get(name) != 0]
        if wrong:
            raise SchemaError(
                f"towers.negative_actions: expected actions with weight 0 in [actions], got {', '.join(sorted(wrong))}."
                " What counts as a positive cannot be a negative as well."
            )
        if not self.item_bias and all(feature.kind == "count" for feature in schema.side("item")):
            raise SchemaError(
                f"{schema.dataset.name}: expected an item feature besides counts, which move nothing but the item bias,"
                " got item_bias = false and counts alone. Add a feature, or leave item_bias out."
            )
        if self.protocol != "windows":
            self._refuse_moving(schema)

    def _refuse_moving(self, schema: DatasetSchema) -> None:
        """Refuses features that change with the moment: where examples have none, all would get the values of the
        features' own moment, in which the events to predict are counted already.
        """
        moving = [
            f"features.{side} {feature.name!r} ({feature.kind})"
            for side in SIDES
            for feature in schema.side(side)
            if isinstance(feature, CountFeature | TimeSinceFeature)
        ]
        if not moving:
            return
        remedy = "Remove them"
        if schema.tables.events.time is not None:
            remedy = 'Set protocol = "windows" in [towers], whose examples have a moment each, or remove them'
        raise SchemaError(
            f"towers.protocol: expected no features that change with the moment, got {', '.join(moving)}. The examples "
            f"of {self.protocol!r} have no moment of their own: training would see counts and times of its future. "
            f"{remedy}."
        )

    @property
    def vector_dim(self) -> int:
        """Dimensions of the unit vector: the exported ones without the item bias."""
        return self.embedding_dim - int(self.item_bias)

    @property
    def content_dim(self) -> int:
        """Dimensions of the vector that content features fill alone."""
        return int(self.content_share * self.vector_dim)


class WindowsSettings(CommonSettings):
    """For events with a time. An example is a user at a sampled moment: the history before it, and as positives all
    items of the days after it. The recipe was chosen on the validation weeks of Complete Journey.
    """

    protocol: Literal["windows"] = Field(
        default="windows", description="Events with a time, unless the split leaves the last events out."
    )
    embedding_dim: EmbeddingDim = 512
    item_norm: ItemNorm = "free"
    content_share: ContentShare = 0.5
    tastes: Tastes = 4096
    bias_start: BiasStart = 0.0
    history_encoder: HistoryEncoder = Field(
        default="recency",
        description="How a history becomes a vector: by a mean, means with several decays (recency), attention or a "
        "transformer. none: by the user's features alone.",
    )
    decay_days: DecayDays = (0.0, 60.0)
    content_scale: ContentScale = 0.001
    id_dropout: IdDropout = 0.02
    initializer: Initializer = "svd"
    temperature: Temperature = 0.04
    uniform_negatives: UniformNegatives = 1024
    activity_power: ActivityPower = 0.0
    novel_weight: float = Field(
        default=1.0,
        ge=0.0,
        description="Weight of a second softmax over items that are new to the user. Turn it down where users mostly "
        "buy the same items again.",
    )
    window_days: float = Field(
        default=28.0, gt=0.0, description="Days after an example's moment whose items are its positives."
    )
    min_history_days: float = Field(
        default=56.0, ge=0.0, description="Days of events before the earliest moment of an example."
    )
    batch_users: BatchUsers = 128
    epochs: Epochs = 3
    min_steps: MinSteps = 20
    learning_rate: LearningRate = 2e-4
    shared_rate: SharedRate = 0.01
    content_rate: ContentRate = 0.0
    rowwise: Rowwise = False
    epsilon: Epsilon = 1e-3
    patience: Patience = 2
    select_k: SelectK = (20, 100)
    select: Select = "both"
    max_valid_users: MaxValidUsers = 1000


class PositionsSettings(CommonSettings):
    """For events in an order. An example is a position of a user's sequence: its history, and the next item.

    The recipe follows published settings (SASRec with sampled softmax); validation on Amazon's beauty products
    preferred no other dropout, and a lookahead of a quarter to none and to more.
    """

    protocol: Literal["positions"] = Field(
        default="positions", description="Events in an order, and splits that leave the last events out."
    )
    embedding_dim: EmbeddingDim = 129
    item_norm: ItemNorm = "unit"
    content_share: ContentShare = 0.0
    bias_start: BiasStart = 1.0
    history_encoder: Literal["transformer"] = Field(
        default="transformer", description="How a history becomes a vector: one for each of its positions."
    )
    content_scale: ContentScale = 0.3
    id_dropout: IdDropout = 0.1
    initializer: Initializer = "random"
    temperature: Temperature = 0.07
    uniform_negatives: UniformNegatives = 2048
    lookahead: float = Field(
        default=0.25,
        ge=0.0,
        le=1.0,
        description="The items after the next one are positives too, each with this times the weight of the one before "
        "it. 0: the next item alone.",
    )
    batch_users: BatchUsers = 256
    epochs: Epochs = 60
    min_steps: MinSteps = 40
    learning_rate: LearningRate = 1e-3
    shared_rate: SharedRate = 1.0
    content_rate: ContentRate = 1.0
    rowwise: Rowwise = False
    epsilon: Epsilon = 1e-7
    patience: Patience = 5
    select_k: SelectK = (10,)
    select: Select = "novel"
    # 5,000 distinguish the epochs too poorly: seeds that stopped early were worse.
    max_valid_users: MaxValidUsers = 20_000


class SetsSettings(CommonSettings):
    """For events without order. An example is a user with all train items at once.

    The recipe comes from validation on gowalla; bias_start and activity_power from Amazon's electronics as well.
    """

    protocol: Literal["sets"] = Field(default="sets", description="Events without order.")
    embedding_dim: EmbeddingDim = 256
    item_norm: ItemNorm = "unit"
    content_share: ContentShare = 0.0
    tastes: Tastes = 256
    bias_start: BiasStart = 0.5
    history_encoder: HistoryEncoder = Field(
        default="mean",
        description="How a history becomes a vector. Default: none if users have an id feature, whose rows then are "
        "the users' vectors, else mean.",
    )
    decay_days: DecayDays = (0.0, 60.0, 14.0)
    content_scale: ContentScale = 0.3
    id_dropout: IdDropout = 0.0
    initializer: Initializer = "svd"
    temperature: Temperature = 0.1
    uniform_negatives: UniformNegatives = 2048
    activity_power: ActivityPower = 1.0
    batch_users: BatchUsers = 256
    # Never stopped early: while the rate is high, validation goes up and down by .002 from epoch to epoch.
    epochs: Epochs = 20
    learning_rate: LearningRate = 0.003
    shared_rate: SharedRate = 1.0
    content_rate: ContentRate = 1.0
    rowwise: Rowwise = True
    epsilon: Epsilon = 1e-7
    patience: Patience = 20
    select_k: SelectK = (20,)
    select: Select = "novel"
    max_valid_users: MaxValidUsers = 5000


TowersSettings = Annotated[WindowsSettings | PositionsSettings | SetsSettings, Field(discriminator="protocol")]
CLASSES: dict[Protocol, type[WindowsSettings] | type[PositionsSettings] | type[SetsSettings]] = {
    "windows": WindowsSettings,
    "positions": PositionsSettings,
    "sets": SetsSettings,
}
_SECTION: TypeAdapter[WindowsSettings | PositionsSettings | SetsSettings] = TypeAdapter(TowersSettings)


def settings_for(schema: DatasetSchema, /, **given: Any) -> TowersSettings:
    """The section for a data set: the keys that are ``given``, the protocol's recipe for all others.

    Raises:
        ConfigError: a key is unknown or wrong, or the protocol does not read it.
        SchemaError: the settings do not fit the data set.
    """
    try:
        settings = _SECTION.validate_python(chosen_by(given, schema.tables, schema.features, schema.split) | given)
    except ValidationError as err:
        raise ConfigError(describe(err, "[towers]", TowersSettings)) from err
    settings.refuse_misfits(schema)
    return settings


def chosen_by(given: Mapping[str, Any], tables: Tables, features: Features, split: Split) -> dict[str, Any]:
    """What the data decide where ``[towers]`` does not: the protocol, and whether sets need a history encoder.

    Events with a time take windows, unless the split leaves the last events out; unordered ones sets; others positions.
    """
    by_time = tables.events.time is not None and not split.leave_last_out
    chosen: dict[str, Any] = {"protocol": "windows" if by_time else "sets" if tables.events.unordered else "positions"}
    knows_users = any(feature.kind == "id" for feature in features.user)
    if knows_users and given.get("protocol", chosen["protocol"]) == "sets":
        chosen["history_encoder"] = "none"
    return chosen


def deciding_keys() -> frozenset[str]:
    """The keys that decide whether others have an effect."""
    marks = [mark for section in CLASSES.values() for each in _marks(section).values() for mark in each]
    return frozenset({"protocol", *(mark.key for mark in marks)})


def read_by(key: str) -> str:
    """Which settings read a key that not all do, as an error says it."""
    having = [name for name, cls in CLASSES.items() if key in cls.model_fields]
    protocols = [] if len(having) == len(CLASSES) else [f"protocol = {' or '.join(map(repr, having))}"]
    return " and ".join([*protocols, *(str(mark) for mark in _marks(CLASSES[having[0]])[key])])


def _marks(cls: type[CommonSettings]) -> dict[str, tuple[OnlyWith, ...]]:
    return {
        name: tuple(mark for mark in field.metadata if isinstance(mark, OnlyWith))
        for name, field in cls.model_fields.items()
    }
