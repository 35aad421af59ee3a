"""The Beam runner: which engine runs a job, and with which options.

Locally the runner is always FnApiRunner, named outright: Beam's default DirectRunner first tries to download
another engine and behaves differently with it. Options that follow ``--`` on the command line go to Beam
unchanged; with ``--runner=FlinkRunner`` (or Spark, or Dataflow) the same job runs there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipelines.errors import ConfigError

_LOCAL = (None, "DirectRunner", "FnApiRunner", "direct", "SwitchingDirectRunner")


def pipeline_options(beam_args: Sequence[str] = ()) -> PipelineOptions:
    """Beam's options.

    ``--direct_num_workers=N`` without a running mode means N processes.

    Raises:
        ConfigError: Beam cannot read the arguments.
    """
    try:
        options = PipelineOptions(list(beam_args))
        direct = options.view_as(DirectOptions)
    except SystemExit as err:
        raise ConfigError(f"Beam cannot read its arguments {' '.join(beam_args)!r}. See docs/scale.md.") from err
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        direct.direct_running_mode = "multi_processing"
    options.view_as(SetupOptions).save_main_session = False
    return options


def local_workers(options: PipelineOptions) -> int | None:
    """How many workers a local run has; None where the job runs elsewhere."""
    if options.view_as(StandardOptions).runner not in _LOCAL:
        return None
    workers = options.view_as(DirectOptions).direct_num_workers
    return workers if workers > 0 else os.cpu_count() or 1


def runner_of(options: PipelineOptions) -> PipelineRunner:
    """The engine the options name; FnApiRunner where they name none.

    Raises:
        ConfigError: there is no such runner.
    """
    if local_workers(options) is not None:
        return FnApiRunner()
    name = options.view_as(StandardOptions).runner
    try:
        return create_runner(name)
    except (ValueError, ImportError, AttributeError) as err:
        raise ConfigError(f"Beam has no runner {name!r}: {err}. See docs/scale.md for those that work.") from err


def new_pipeline(options: PipelineOptions) -> beam.Pipeline:
    """A pipeline that runs when its ``with`` block ends."""
    return beam.Pipeline(runner=runner_of(options), options=options)
