"""The ``[towers]`` section of the TOML: what is learned, and how.

Imports no TensorFlow, so that a configuration is checked before anything heavy starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema, Section

Protocol = Literal["windows", "positions", "sets"]
HistoryEncoder = Literal["none", "mean", "recency", "attention", "transformer"]


class TuningRange(Section):
    """Where ``towerline tune`` looks for a key's value: between ``low`` and ``high``, or among ``choices``."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[float | int | str | bool, ...] = ()

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


class TowersSettings(Section):
    """Shape and training of the two towers; the defaults depend on the kind of data, never on its name.

    ``protocol`` says what a training example is. ``windows`` (data with time): a user at a sampled moment, the
    history before it, and as positives all items of the ``window_days`` after it. ``positions`` (data with order):
    a position of a sequence, its history, and the next item. ``sets`` (data without order): a user and all train
    items at once. ``auto`` takes windows for events with a time (but leave-last-out), sets for unordered events,
    positions else.
    """

    protocol: Literal["auto"] | Protocol = "auto"

    # The towers.
    embedding_dim: int = Field(default=129, ge=2)  # of the exported vectors, the item bias counted in
    item_bias: Literal["auto"] | bool = "auto"  # off for cosine contrastive, where a score is a cosine
    # unit: cosine. free: an item that says more of a user has a longer vector, in histories and in the ranking.
    item_norm: Literal["auto", "unit", "free"] = "auto"
    content_share: float = Field(default=0.0, ge=0.0, le=0.5)  # of the dimensions, those content fills without the id
    tastes: int = Field(default=256, ge=1)  # hidden units between a history's content and what the user likes of it
    bias_start: float = Field(default=1.0, ge=0.0, le=1.0)  # an item's bias starts at this times the log of its count
    history_encoder: Literal["auto"] | HistoryEncoder = "auto"
    # One pooling head each, starting values; 0: no decay.
    decay_days: tuple[Annotated[float, Field(ge=0.0)], ...] = Field(default=(0.0, 60.0, 14.0), min_length=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    content_scale: float = Field(default=0.3, ge=0.0)  # norm of a content table's rows at the start; an id row has 1
    text_pool: Literal["bag", "attention"] = "bag"  # how a text's tokens are weighed: by rarity, or learned as well
    id_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    initializer: Literal["auto", "random", "svd"] = "auto"

    # The loss.
    loss: Literal["softmax", "cosine_contrastive"] = "softmax"
    temperature: float = Field(default=0.08, gt=0.0)
    learned_temperature: bool = False
    uniform_negatives: int = Field(default=2048, ge=0)
    in_batch_negatives: int | None = Field(default=None, ge=0)  # drawn of the batch's positives; None: all of them
    # Negatives a user is sure to have besides the drawn ones: so many mined from the live index, and what was shown and
    # not taken (impressions), each counting as so many items; such an action weighs 0 in [actions].
    hard_negatives: int = Field(default=0, ge=0)
    negative_actions: dict[str, float] = Field(default_factory=dict)
    # A user's positives together weigh their number to this power: at 0 all users are alike, at 1 all positives.
    activity_power: float = Field(default=0.0, ge=0.0, le=1.0)
    novel_weight: float = Field(default=0.5, ge=0.0)  # windows: weight of a second softmax over unseen items only
    window_days: float = Field(default=28.0, gt=0.0)
    # positions: after the next item each further one is a positive as well, at this times the weight of the one before.
    lookahead: float = Field(default=0.0, ge=0.0, le=1.0)
    min_history_days: float = Field(default=56.0, ge=0.0)
    margin: float = Field(default=0.8, ge=-1.0, le=1.0)  # cosine contrastive
    negative_weight: float = Field(default=150.0, gt=0.0)  # cosine contrastive

    # Training.
    batch_users: int = Field(default=256, ge=1)
    epochs: int = Field(default=30, ge=0)
    # Steps of an epoch at least, but for sets: few users come several times, at other moments or in other batches.
    min_steps: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=0.01, gt=0.0)
    # What many items or users share (mixing matrices, content and profile tables) learns at this times the rate: one
    # of Adam's steps on a matrix of fan-in n moves an output n times as far as one on a row of its own.
    shared_rate: float = Field(default=1.0, ge=0.0)
    # Of that, the items' content at this times as much, where items have ids: these can learn it all, and what content
    # says of them is fitted in the end (``towers.closed_form.content_fit``).
    content_rate: float = Field(default=1.0, ge=0.0)
    # An item's or a user's own row keeps one second moment and no first one: faster, and a third of the memory.
    rowwise: bool = False
    schedule: Literal["constant", "cosine"] = "cosine"
    epsilon: float = Field(default=1e-7, gt=0.0)  # Adam's; rows with gradients below it move less than the others
    # Users times candidates in bfloat16; weights, sums and the exported towers in float32.
    mixed_precision: bool = False
    clip_norm: float | None = Field(default=None, gt=0.0)
    patience: int = Field(default=5, ge=1)  # epochs without a better validation recall
    evaluate_every: int = Field(default=1, ge=1)  # epochs
    select_k: tuple[int, ...] = (20, 100)
    select: Literal["auto", "all", "novel", "both"] = "auto"  # which validation recall chooses the weights
    max_valid_users: int = Field(default=5000, ge=1)
    refit: bool = True  # train again on train and valid for the epochs found best
    # Least time between two checkpoints; of several workers each keeps one of every epoch.
    checkpoint_minutes: float = Field(default=2.0, ge=0.0)

    # What `towerline tune` varies: [towers.tune] with a range a key.
    tune: dict[str, TuningRange] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.negative_actions and min(self.negative_actions.values()) <= 0:
            raise ValueError(f"negative_actions: expected weights above 0, got {self.negative_actions}")
        if self.loss != "softmax" and (self.negative_actions or self.hard_negatives):
            raise ValueError("hard_negatives and negative_actions need loss = 'softmax'")
        if self.loss != "softmax" and self.item_norm == "free":
            raise ValueError(f"loss = {self.loss!r} compares cosines: expected item_norm = 'unit', got 'free'")
        if self.loss != "softmax" and self.item_bias is True:
            raise ValueError(f"loss = {self.loss!r} compares cosines: expected item_bias = false, got true")
        if not (self.uniform_negatives or self.in_batch_negatives is None or self.in_batch_negatives):
            raise ValueError("expected uniform_negatives or in_batch_negatives above 0: without negatives all is right")
        unknown = sorted(set(self.tune) - (set(type(self).model_fields) - {"tune"}))
        if unknown:
            raise ValueError(f"tune: expected keys of [towers], got {', '.join(unknown)}")
        if not self.select_k or min(self.select_k) < 1:
            raise ValueError(f"select_k: expected at least one k, all of them 1 or more, got {self.select_k}")
        return self

    @property
    def vector_dim(self) -> int:
        """Dimensions of the unit vector: the exported ones less the item bias. Of resolved settings."""
        return self.embedding_dim - int(self.item_bias is True)

    @property
    def content_dim(self) -> int:
        """Dimensions of the vector that content features fill alone."""
        return int(self.content_share * self.vector_dim)

    def resolved(self, schema: DatasetSchema) -> TowersSettings:
        """These settings with each ``auto`` replaced by what the schema asks for.

        A key that was not given takes the value of the protocol's recipe (``RECIPES``).

        Raises:
            SchemaError: they do not fit the schema, or each other, or nothing reads a key that was given.
        """
        found = self._filled(schema)
        found._refuse_misfits(schema)
        recipe, fields = RECIPES[found.protocol], type(self).model_fields  # type: ignore[index]
        unread = [
            name for name in found._idle() if getattr(found, name) not in (fields[name].default, recipe.get(name))
        ]
        if unread:
            told = ", ".join(f"{name} (only {read_by(name)} reads it)" for name in unread)
            raise SchemaError(
                f"{schema.dataset.name}: expected keys of [towers] that have an effect with protocol = "
                f"{found.protocol!r}, history_encoder = {found.history_encoder!r} and loss = {found.loss!r}; got "
                f"{told}. Leave them out."
            )
        return found

    def idle(self, schema: DatasetSchema) -> tuple[str, ...]:
        """The keys that have no effect, whatever their value: ``resolved`` refuses those of an unusual one."""
        return self._filled(schema)._idle()

    def _idle(self) -> tuple[str, ...]:
        return tuple(name for name, (does, _) in _READ_BY.items() if not does(self))

    def _filled(self, schema: DatasetSchema) -> TowersSettings:
        protocol = self._protocol(schema)
        cosines = self.loss == "cosine_contrastive"
        knows_users = any(feature.kind == "id" for feature in schema.features.user)
        of_sets: HistoryEncoder = "none" if knows_users else "mean"
        chosen: dict[str, Any] = {
            "protocol": protocol,
            "history_encoder": {"windows": "recency", "positions": "transformer", "sets": of_sets}[protocol],
            "select": "both" if protocol == "windows" else "novel",
            "initializer": "random" if protocol == "positions" else "svd",
            "item_norm": "free" if protocol == "windows" and not cosines else "unit",
            "item_bias": not cosines,
        }
        chosen = {name: value for name, value in chosen.items() if getattr(self, name) == "auto"}
        recipe = {name: value for name, value in RECIPES[protocol].items() if name not in self.model_fields_set}
        if cosines and "embedding_dim" in recipe:
            recipe["embedding_dim"] -= 1  # the recipe's has the bias in it
        return TowersSettings.model_validate({**self.model_dump(), **chosen, **recipe})

    def _refuse_misfits(self, schema: DatasetSchema) -> None:
        """Refuses resolved settings that do not fit the schema, or each other."""
        wrong = [name for name in self.negative_actions if schema.actions.get(name) != 0]
        if wrong:
            raise SchemaError(
                f"towers.negative_actions: expected actions with weight 0 in [actions], got {', '.join(sorted(wrong))}."
                " What counts as a positive cannot be a negative as well."
            )
        if self.protocol == "positions" and self.history_encoder != "transformer":
            raise SchemaError(
                "towers.history_encoder: with protocol = 'positions' each place of a sequence is an example, which "
                f"only 'transformer' embeds; got {self.history_encoder!r}. Leave it out, or take protocol = 'sets'."
            )
        if self.history_encoder == "transformer" and self.vector_dim % self.heads:
            raise SchemaError(
                f"towers.heads: expected a divisor of the unit vector's {self.vector_dim} dimensions (embedding_dim, "
                f"less one with item_bias), got {self.heads}. Change either."
            )
        if not self.item_bias and all(feature.kind == "count" for feature in schema.features.item):
            raise SchemaError(
                f"{schema.dataset.name}: expected an item feature besides counts, which move nothing but the item bias,"
                " got item_bias = false and counts alone. Add a feature, or leave item_bias out."
            )

    def _protocol(self, schema: DatasetSchema) -> Protocol:
        if self.protocol != "auto":
            return self.protocol
        events = schema.tables.events
        by_time = events.time is not None and not schema.split.leave_last_out
        return "windows" if by_time else "sets" if events.unordered else "positions"


# What decides whether the keys below are read.
DECIDING = ("protocol", "history_encoder", "loss", "content_share")
# Keys that not all settings read: whether these do, and how to say which.
_READ_BY: dict[str, tuple[Callable[[TowersSettings], bool], str]] = {
    "window_days": (lambda s: s.protocol == "windows", "protocol = 'windows'"),
    "min_history_days": (lambda s: s.protocol == "windows", "protocol = 'windows'"),
    "novel_weight": (lambda s: s.protocol == "windows" and s.loss == "softmax", "protocol = 'windows', by softmax,"),
    "lookahead": (lambda s: s.protocol == "positions", "protocol = 'positions'"),
    "activity_power": (lambda s: s.protocol != "positions", "protocol = 'windows' or 'sets'"),
    "decay_days": (lambda s: s.history_encoder == "recency", "history_encoder = 'recency'"),
    "tastes": (
        lambda s: s.content_dim > 0 and s.history_encoder in ("mean", "recency"),
        "a pooled history, with content_share above 0,",
    ),
    "heads": (lambda s: s.history_encoder in ("attention", "transformer"), "an attention or transformer encoder"),
    "layers": (lambda s: s.history_encoder == "transformer", "history_encoder = 'transformer'"),
    "dropout": (lambda s: s.history_encoder == "transformer", "history_encoder = 'transformer'"),
    "margin": (lambda s: s.loss == "cosine_contrastive", "loss = 'cosine_contrastive'"),
    "negative_weight": (lambda s: s.loss == "cosine_contrastive", "loss = 'cosine_contrastive'"),
}


def read_by(key: str) -> str:
    """Which settings read a key that not all do, as an error says it."""
    return _READ_BY[key][1]


# Starting points for a kind of data: windows was settled on the validation weeks of Complete Journey; positions follows
# published settings (SASRec with sampled softmax), of which validation on Amazon's beauty products preferred no other
# dropout, and a lookahead of a quarter to none and to more; sets comes from validation on gowalla, its bias_start and
# activity_power from that on Amazon's electronics as well.
RECIPES: dict[Protocol, dict[str, Any]] = {
    "windows": {
        "embedding_dim": 512,
        "content_share": 0.5,
        "tastes": 4096,
        "decay_days": (0.0, 60.0),
        "temperature": 0.04,
        "learning_rate": 2e-4,
        "epsilon": 1e-3,
        "shared_rate": 0.01,
        "content_rate": 0.0,
        "bias_start": 0.0,
        "content_scale": 0.001,
        "id_dropout": 0.02,
        "novel_weight": 1.0,
        "batch_users": 128,
        "uniform_negatives": 1024,
        "min_steps": 20,
        "epochs": 3,
        "patience": 2,
        "max_valid_users": 1000,
    },
    "positions": {
        "embedding_dim": 129,
        "temperature": 0.07,
        "lookahead": 0.25,
        "learning_rate": 1e-3,
        "epochs": 60,
        "select_k": (10,),
        # 5,000 tell the epochs apart too poorly: seeds that stopped early were worse.
        "max_valid_users": 20_000,
    },
    "sets": {
        "embedding_dim": 256,
        "temperature": 0.1,
        "learning_rate": 0.003,
        "rowwise": True,
        "bias_start": 0.5,
        "activity_power": 1.0,
        "id_dropout": 0.0,
        # Never stopped early: while the rate is high, validation goes up and down by .002 from epoch to epoch.
        "epochs": 20,
        "patience": 20,
        "select_k": (20,),
    },
}
