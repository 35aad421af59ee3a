"""What all verbs share: the options that each has, how an answer is shown, and how an error ends.

Exit code 0: done; 1: failed; 2: misuse; 130: interrupted. The last line of an answer is the path of the manifest or
report that was written; ``--json`` prints one object instead.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.contracts.errors import ConfigError, TowerlineError
from pipelines.progress import SILENT, Progress
from towerline.commands import native_logs
from towerline.project import Project, open_project

DEFAULT_CONFIG = Path("towerline.toml")
_PANEL = "Options of every verb"

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="TOWERLINE_CONFIG",
        metavar="FILE.toml",
        help=f"the data set's TOML; default: ./{DEFAULT_CONFIG}",
        rich_help_panel=_PANEL,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="overrides one key: towers.embedding_dim=128", rich_help_panel=_PANEL
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="DIR",
        help="the run's folder, where artifacts go; default: runs/<dataset name>",
        rich_help_panel=_PANEL,
    ),
]
RegistryUrl = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URL",
        help="the registry's folder or URL; default: <work>/registry",
        rich_help_panel=_PANEL,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object, and no progress", rich_help_panel=_PANEL)]
Quiet = Annotated[bool, typer.Option("--quiet", help="show no progress", rich_help_panel=_PANEL)]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="show tracebacks, and what the libraries below log", rich_help_panel=_PANEL),
]


@dataclass(frozen=True)
class Call:
    """One call of a verb: the options that every verb has, and what goes to Beam."""

    config: Path | None
    overrides: tuple[str, ...]
    work: Path | None
    registry: str | None
    as_json: bool
    quiet: bool
    debug: bool
    beam_args: tuple[str, ...]

    @functools.cached_property
    def progress(self) -> Progress:
        """Shown on the error stream, which leaves the output to the result; silent where that is asked."""
        return SILENT if self.quiet or self.as_json else Progress(sys.stderr)

    @functools.cached_property
    def project(self) -> Project:
        """The project that the options name.

        Raises:
            ConfigError: no TOML is given and none is in this folder, or the TOML is wrong.
        """
        config = self.config
        if config is None:
            if not DEFAULT_CONFIG.is_file():
                raise ConfigError(
                    f"expected a TOML, found no ./{DEFAULT_CONFIG}. Give its path with --config, or in the environment "
                    "variable TOWERLINE_CONFIG."
                )
            config = DEFAULT_CONFIG
        return open_project(
            config,
            overrides=self.overrides,
            work=self.work,
            registry=self.registry,
            beam_args=self.beam_args,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Answer:
    """What a verb has to say: lines for a person, an object for a machine, the path or URL it wrote, the exit code."""

    lines: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    written: Path | str | None = None
    exit_code: int = 0


def command(name: str, verb: Callable[..., Answer], beam_args: Sequence[str] = ()) -> Callable[..., None]:
    """The function that Typer calls for a verb: ``verb(call, **own options)``, with the common options in front."""

    def run(
        *,
        config: ConfigFile = None,
        overrides: Overrides = None,
        work: Work = None,
        registry: RegistryUrl = None,
        as_json: AsJson = False,
        quiet: Quiet = False,
        debug: Debug = False,
        **own: Any,
    ) -> None:
        call = Call(config, tuple(overrides or ()), work, registry, as_json, quiet, debug, tuple(beam_args))
        with native_logs.hidden(unless=debug):
            code = _run(name, verb, call, own)
        raise typer.Exit(code)

    run.__name__, run.__doc__ = verb.__name__, verb.__doc__
    own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
    common = [
        parameter
        for parameter in inspect.signature(run, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*keyword, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*keyword, *common]}
    return run


def _run(name: str, verb: Callable[..., Answer], call: Call, own: dict[str, Any]) -> int:
    try:
        answer = verb(call, **own)
    except TowerlineError as err:
        if call.debug:
            raise
        return _refused(name, str(err), err.exit_code)
    except OSError as err:
        if call.debug:
            raise
        remedy = " Set TMPDIR to a folder that this user can write." if "temporary directory" in str(err) else ""
        return _refused(name, f"the system refused: {err}. Nothing was replaced.{remedy}", 1)
    except KeyboardInterrupt:
        return _refused(name, "interrupted; the last finished stage stays", 130)
    try:
        _show(answer, as_json=call.as_json)
    except BrokenPipeError:
        # The reader has gone, as `head` does: no error. Nothing may be flushed into the pipe later.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return answer.exit_code


def _refused(name: str, message: str, code: int) -> int:
    print(f"towerline {name}: {message}", file=sys.stderr)
    return code


def _show(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        written = {} if answer.written is None else {"written": str(answer.written)}
        print(json.dumps({**answer.facts, **written}, default=str))
    else:
        for line in answer.lines:
            print(line)
        if answer.written is not None:
            print(answer.written)
    sys.stdout.flush()
