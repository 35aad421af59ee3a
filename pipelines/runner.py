"""The Beam runner: which engine runs a job, and with which options.

Locally the runner is always FnApiRunner, named outright: Beam's default DirectRunner first tries to download
another engine and behaves differently with it. Options that follow ``--`` on the command line go to Beam
unchanged; with ``--runner=FlinkRunner`` (or Spark, or Dataflow) the same job runs there.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any

from pipelines.contracts.errors import ConfigError
from pipelines.threads import cores, local_threads


def _import_beam() -> Any:
    """Imports Beam without its warning that the clients of BigQuery, unused here, are missing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("apache_beam")
    finally:
        logging.disable(disabled)


beam = _import_beam()

_LOCAL = (None, "DirectRunner", "FnApiRunner", "direct", "SwitchingDirectRunner")


def pipeline_options(beam_args: Sequence[str] = (), *, tasks: int = 1) -> Any:
    """Beam's ``PipelineOptions``.

    ``--direct_num_workers=N`` without a running mode means N processes. Without it a local job of several tasks has
    a thread per core, at most 8: its work is done by Arrow and NumPy, which let other threads run.

    Args:
        beam_args: for Beam.
        tasks: number of tasks that could be done at the same time.

    Raises:
        ConfigError: Beam cannot read the arguments.
    """
    known = importlib.import_module("apache_beam.options.pipeline_options")
    try:
        options = known.PipelineOptions(list(beam_args))
        direct = options.view_as(known.DirectOptions)
    except SystemExit as err:
        raise ConfigError(f"Beam cannot read its arguments {' '.join(beam_args)!r}. See docs/scale.md.") from err
    if not any(arg.startswith("--direct_") for arg in beam_args) and local_workers(options) == 1:
        direct.direct_num_workers = local_threads(tasks)
        direct.direct_running_mode = "multi_threading" if direct.direct_num_workers > 1 else "in_memory"
    elif direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        direct.direct_running_mode = "multi_processing"
    options.view_as(known.SetupOptions).save_main_session = False
    return options


def _runner_name(options: Any) -> str | None:
    known = importlib.import_module("apache_beam.options.pipeline_options")
    name = options.view_as(known.StandardOptions).runner
    return None if name is None else str(name)


def local_workers(options: Any) -> int | None:
    """How many workers a local run has; None if the job runs elsewhere."""
    if _runner_name(options) not in _LOCAL:
        return None
    known = importlib.import_module("apache_beam.options.pipeline_options")
    workers = int(options.view_as(known.DirectOptions).direct_num_workers)
    return workers if workers > 0 else cores()


def thread_count(beam_args: Sequence[str], tasks: int) -> int | None:
    """How many threads of this process a job has; None if it runs in other processes or elsewhere.

    Arguments and errors as of ``pipeline_options``, which takes a while: it is not asked where there are none.
    """
    if not beam_args:
        return local_threads(tasks)
    options = pipeline_options(beam_args, tasks=tasks)
    known = importlib.import_module("apache_beam.options.pipeline_options")
    in_threads = options.view_as(known.DirectOptions).direct_running_mode in ("in_memory", "multi_threading")
    return local_workers(options) if in_threads else None


def runner_of(options: Any) -> Any:
    """The engine the options name; FnApiRunner if they name none.

    Raises:
        ConfigError: there is no such runner.
    """
    if local_workers(options) is not None:
        return importlib.import_module("apache_beam.runners.portability.fn_api_runner").FnApiRunner()
    name = _runner_name(options)
    try:
        return importlib.import_module("apache_beam.runners.runner").create_runner(name)
    except (ValueError, ImportError, AttributeError) as err:
        raise ConfigError(f"Beam has no runner {name!r}: {err}. See docs/scale.md for those that work.") from err


def new_pipeline(options: Any) -> Any:
    """A ``beam.Pipeline`` that runs when its ``with`` block ends."""
    return beam.Pipeline(runner=runner_of(options), options=options)
