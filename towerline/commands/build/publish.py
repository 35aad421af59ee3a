"""``towerline publish``."""

from __future__ import annotations

from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline publish --config ads.toml",
    "towerline publish --config ads.toml --dry-run",
    'towerline publish --config ads.toml --force "catalogue shrank on purpose"',
)

Force = Annotated[
    str | None,
    typer.Option("--force", metavar="REASON", help="publish against a failed gate; the reason is recorded"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="let the gates decide, and publish nothing")]


def verb(call: Call, force: Force = None, dry_run: DryRun = False) -> Answer:
    """A bundle to the registry, through the gates; CURRENT moves last."""
    done = call.project.publish(force_reason=force, dry_run=dry_run)
    facts = {"version": done.version, "forced": done.forced, "gates": [one.as_fact() for one in done.verdicts]}
    if done.version is None:
        return Answer(lines=["dry run: nothing was published"], facts=facts, exit_code=1 if done.failed else 0)
    from index.registry.registry import Registry

    manifest = Registry(call.project.config.registry).manifest_of(done.version)
    return Answer(lines=[f"live: {done.version}"], facts=facts, written=manifest)
