"""The sections ``[alerts]`` and ``[replay]`` of the TOML."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipelines.contracts.configuration import Section


class AlertsSettings(Section):
    """Who hears of a night that was refused, late or failed, and what a monitoring system reads of every night."""

    command: str | None = Field(
        default=None,
        min_length=1,
        description="Command line for `/bin/sh` that is run after a refused, late or failed night. It gets the night "
        "as JSON on its standard input.",
    )
    webhook: str | None = Field(
        default=None, description="URL (http or https) to which the same JSON is posted, such as a chat's or a pager's."
    )
    late_minutes: float | None = Field(
        default=None,
        gt=0.0,
        description="A night is late if it took longer than this, or if it ended more than a day and this after the "
        "last successful night. Not set: no night is late.",
    )
    timeout_seconds: float = Field(
        default=30.0, gt=0.0, description="Time after which the command, or the request, is given up, in seconds."
    )
    metrics_file: Path | None = Field(
        default=None,
        description="File for the textfile collector of Prometheus' node exporter, written after every night. Its name "
        "must end in `.prom`. Relative paths start at the TOML's folder.",
    )

    @field_validator("webhook")
    @classmethod
    def _of_http(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
            raise ValueError('expected a URL of http or https, such as "https://hooks.example.com/T123"')
        return url

    @field_validator("metrics_file")
    @classmethod
    def _as_the_collector_wants_it(cls, file: Path | None) -> Path | None:
        if file is not None and file.suffix != ".prom":
            raise ValueError("expected a name that ends in .prom; the textfile collector reads no other")
        return file


class ReplaySettings(Section):
    """How `towerline replay-nights` measures."""

    max_users: int | None = Field(
        default=None,
        ge=1,
        description="Users measured per day, a stable sample of those with an event on the day. Not set: all.",
    )
