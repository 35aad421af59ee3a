"""The validation of a schema: how much bad input is accepted."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.contracts.configuration import Moment, Section


class ColumnRule(Section):
    """What a column of a table must satisfy; a row that does not is rejected with the rule's name as the reason."""

    nullable: bool | None = Field(default=None, description="false: rows without a value are rejected.")
    min: float | None = Field(default=None, description="Smallest number allowed.")
    max: float | None = Field(default=None, description="Largest number allowed.")
    max_length: int | None = Field(default=None, ge=0, description="Maximum length of a text or list.")
    allowed: tuple[str, ...] | None = Field(default=None, description="The only values allowed.")


class DriftLimits(Section):
    """By how much a run may differ from the previous one."""

    null_rate: float = Field(
        default=0.05, ge=0.0, description="Maximum change of a column's share of missing values (0.05: five points)."
    )
    new_value_share: float = Field(
        default=0.2, ge=0.0, description="Maximum share of items, or of a feature's values by frequency, that are new."
    )
    mean: float = Field(
        default=0.5,
        ge=0.0,
        description="Maximum change of a number's mean, in standard deviations of the previous run (with quantile "
        "scaling: in places among its quantiles, from -1 to 1).",
    )
    daily_volume: float = Field(
        default=0.5,
        ge=0.0,
        description="Maximum relative difference of a new day's events from the mean of the last four weeks.",
    )


class Validation(Section):
    """How much bad input is accepted."""

    max_reject_rate: float = Field(
        default=0.01, ge=0.0, le=1.0, description="Maximum share of a table's rows rejected; above it the job fails."
    )
    min_joined: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Minimum share of events whose user and item are in their tables; below it the job fails, below "
        "0.99 it warns. Such events are counted as unknown, not as rejects.",
    )
    max_rate: dict[str, float] = Field(
        default={}, description='The same by rule, for example { "type:price" = 0.05 }: the reasons in `rejects/`.'
    )
    columns: dict[Literal["events", "items", "users"], dict[str, ColumnRule]] = Field(
        default={}, description="Rules by table and column: `[validation.columns.events.quantity]`."
    )
    earliest: Moment | None = Field(
        default=None, description="Events before this date or time (UTC) are rejected. Not set: 1990-01-01."
    )
    latest: Moment | None = Field(
        default=None, description="Events at or after this date or time (UTC) are rejected. Not set: 2100-01-01."
    )
    late_days: float | None = Field(
        default=None,
        ge=0.0,
        description="With a previous run: new events that are older than its newest one by more than this many days "
        "are rejected. Not set: none.",
    )
    duplicates: Literal["keep", "reject"] = Field(
        default="keep",
        description="What happens to events that repeat another one of the user exactly (item, time, action, value): "
        "counted, or all but the first rejected.",
    )
    drift: Literal["off", "warn", "fail"] = Field(
        default="warn", description="What happens when a run differs from the previous one beyond `drift_limits`."
    )
    drift_limits: DriftLimits = Field(default=DriftLimits(), description="The limits of drift.")

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.earliest is not None and self.latest is not None and self.earliest >= self.latest:
            raise ValueError("expected earliest < latest")
        return self
