"""``towerline refresh``."""

from __future__ import annotations

from towerline.commands.build.features import AsOf, Forget, Remember
from towerline.commands.build.publish import DryRun, Force
from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline refresh --config ads.toml",
    "towerline refresh --config ads.toml --dry-run",
    "towerline refresh --config ads.toml --forget forget.txt",
    "towerline refresh --config ads.toml --work runs/then --registry runs/then/registry --as-of 2026-10-01",
    "towerline refresh --config ads.toml --work /data/runs/ads --registry s3://bucket/registry --quiet",
)


def verb(
    call: Call,
    force: Force = None,
    dry_run: DryRun = False,
    forget: Forget = None,
    remember: Remember = None,
    as_of: AsOf = None,
) -> Answer:
    """The nightly job: features to publish, gated and resumable; what is up to date is skipped."""
    from pipelines.features.reporting.data_summary import lines

    done = call.project.refresh(force_reason=force, dry_run=dry_run, forget=forget, remember=remember, as_of=as_of)
    summary = call.project.data_summary()
    state = "published" if done.published else "nothing new to publish"
    return Answer(
        lines=[
            *lines(summary),
            *([] if done.forgotten is None else [done.forgotten.line]),
            f"live: {done.version} ({state})",
        ],
        facts={
            "version": done.version,
            "published": done.published,
            "data": summary.as_facts(),
            "stages": [vars(one) for one in done.stages],
            "measured_by": done.measured_by,
            **({} if done.forgotten is None else {"forgotten": done.forgotten.as_fact()}),
        },
        written=done.report,
    )
