"""The command ``towerline``: its verbs by purpose.

A new verb is a module with ``verb`` and ``EXAMPLES``, listed in ``PANELS``, and a method of ``Project``. ``init``
comes before there is a project: it is ``towerline.init``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated

import typer

from towerline.commands.build import build, embed, features, init, publish, refresh, train
from towerline.commands.look import check, config, doctor, retrieve, versions
from towerline.commands.measure import compare, evaluate, replay_nights, tune
from towerline.commands.operate import apply_delta, candidates, compact, erasure_report, rollback
from towerline.commands.verb import command

# Purpose -> verbs, in the order of the help.
PANELS: dict[str, tuple[ModuleType, ...]] = {
    "Build a night": (init, refresh, features, train, embed, build, publish),
    "Look": (check, retrieve, versions, config, doctor),
    "Operate": (apply_delta, compact, rollback, candidates, erasure_report),
    "Measure": (evaluate, compare, replay_nights, tune),
}
_HELP = """Two-tower retrieval for shopping ads: raw tables to features, towers, a published index, and candidates.

tables ▶ features ▶ train ▶ embed ▶ build ▶ publish ▶ retrieve, candidates, evaluate
"""
_EPILOG = (
    "`towerline refresh` runs the stages from features to publish and skips what is up to date.\n\n"
    "What follows a bare -- goes to Apache Beam unchanged:\n\n"
    "  towerline features -- --runner=FlinkRunner --flink_master=host:8081"
)


def name_of(module: ModuleType) -> str:
    """The verb as it is typed: the module's name with dashes."""
    return module.__name__.rpartition(".")[2].replace("_", "-")


def app(beam_args: Sequence[str] = ()) -> typer.Typer:
    """The whole command line."""
    root = typer.Typer(
        name="towerline",
        help=_plain(_HELP),
        epilog=_plain(_EPILOG),
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    root.callback()(_root)
    for panel, modules in PANELS.items():
        for module in modules:
            root.command(
                name_of(module),
                help=_plain(module.verb.__doc__ or ""),
                epilog=_plain("Examples:\n\n" + "\n\n".join(f"  {line}" for line in module.EXAMPLES)),
                rich_help_panel=panel,
            )(command(name_of(module), module.verb, beam_args))
    return root


def _plain(text: str) -> str:
    """Text in which square brackets are no markup."""
    return text.replace("[", r"\[")


def _version(asked: bool) -> None:
    if asked:
        from towerline import __version__

        print(f"towerline {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and end")
    ] = False,
) -> None:
    del version


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    try:
        app(words[split + 1 :])(words[:split], prog_name="towerline")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
