"""The command ``towerline``: one verb a stage, and the verbs that look at what was published.

Reads the command line, runs one verb of ``towerline.commands.verbs``, and prints its answer. The last line is the
path of the
manifest or report that was written; ``--json`` prints one object instead. Exit code 0: done; 1: failed; 2: misuse.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.contracts.errors import TowerlineError
from towerline.commands import verbs
from towerline.commands.verbs import Answer, Call, typed

DESCRIPTION = """\
Two-tower retrieval for shopping ads: raw tables to features, towers, a published index, and candidates.

  tables ▶ features ▶ train ▶ embed ▶ build ▶ publish ▶ retrieve, candidates, evaluate

`towerline refresh` runs the stages from features to publish, and skips what is up to date.
"""
EPILOG = """\
What follows a bare -- goes to Apache Beam unchanged:

  towerline features --config ads.toml -- --runner=FlinkRunner --flink_master=host:8081
"""


def max_per(text: str) -> tuple[str, int]:
    """``attribute=n`` of ``--max-per``."""
    name, _, number = text.partition("=")
    if not name or not number.isdigit():
        raise argparse.ArgumentTypeError(f"expected attribute=number, for example advertiser_id=2, got {text!r}")
    return name, int(number)


Verb = Callable[[Call], Answer]


def add_no_options(parser: argparse.ArgumentParser) -> None:
    """A verb without options of its own."""
    del parser


def add_features_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``features``."""
    parser.add_argument("--previous", type=Path, metavar="DIR", help="an earlier features/: read only what is new")
    parser.add_argument("--forget", type=Path, metavar="FILE", help="ids of users of whom nothing may stay, one a line")


def add_erasure_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``erasure-report``."""
    parser.add_argument("forget", type=Path, help="ids of the users to be forgotten, one a line")


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``build``."""
    parser.add_argument("--dry-run", action="store_true", help="predict memory, disk and time, and build nothing")
    parser.add_argument("--items", type=int, metavar="N", help="predict for so many items (default: the embeddings')")
    parser.add_argument("--dim", type=int, metavar="N", help="predict for vectors of such a length")


def add_publish_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``publish`` and ``refresh``."""
    parser.add_argument("--force", metavar="REASON", help="publish against a failed gate; the reason is recorded")
    parser.add_argument("--dry-run", action="store_true", help="let the gates decide, and publish nothing")


def add_delta_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``apply-delta``."""
    parser.add_argument(
        "items", type=Path, help="Parquet like the items table; a column `change` may say remove, pause or resume"
    )


def add_candidates_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``candidates``."""
    parser.add_argument("--k", type=int, default=100, help="candidates a user (default: 100)")
    parser.add_argument("--users", type=Path, metavar="FILE", help="Parquet of raw records (default: all users)")


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``evaluate``."""
    parser.add_argument("--version", help="another version than the live one")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``compare``."""
    parser.add_argument("first", help="the version before")
    parser.add_argument("second", help="the version after")


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``tune``."""
    parser.add_argument(
        "--trials", type=int, default=20, help="settings tried in all, an earlier run's counted in (default: 20)"
    )


def add_version_option(parser: argparse.ArgumentParser) -> None:
    """Options of ``rollback``."""
    parser.add_argument("version", nargs="?", help="default: the newest one older than the live one")


def add_retrieve_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``retrieve``."""
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", type=typed, metavar="ID", help="a user of the tables")
    who.add_argument("--record", metavar="JSON", help='a raw record, {"history": [..], ..}, or @FILE')
    parser.add_argument("--k", type=int, default=10, help="how many candidates (default: 10)")
    parser.add_argument("--version", help="another version than the live one")
    parser.add_argument("--where", metavar="RULE", help="for example: 'coupon_live and price < 10'")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="ITEM_ID", help="items not to show")
    parser.add_argument("--max-per", type=max_per, action="append", default=[], metavar="ATTRIBUTE=N")
    parser.add_argument("--value-weight", type=float, default=0.0, metavar="LAMBDA", help="score + LAMBDA * log(value)")
    parser.add_argument("--diversity", type=float, default=0.0, help="0: none; 1: as unlike each other as can be")


# Verb -> what it does, its own options.
VERBS: dict[str, tuple[Verb, Callable[[argparse.ArgumentParser], None]]] = {
    "features": (verbs.verb_features, add_features_options),
    "train": (verbs.verb_train, add_no_options),
    "embed": (verbs.verb_embed, add_no_options),
    "build": (verbs.verb_build, add_build_options),
    "publish": (verbs.verb_publish, add_publish_options),
    "refresh": (verbs.verb_refresh, add_publish_options),
    "retrieve": (verbs.verb_retrieve, add_retrieve_options),
    "candidates": (verbs.verb_candidates, add_candidates_options),
    "evaluate": (verbs.verb_evaluate, add_evaluate_options),
    "compare": (verbs.verb_compare, add_compare_options),
    "tune": (verbs.verb_tune, add_tune_options),
    "compact": (verbs.verb_compact, add_no_options),
    "apply-delta": (verbs.verb_apply_delta, add_delta_options),
    "erasure-report": (verbs.verb_erasure_report, add_erasure_options),
    "versions": (verbs.verb_versions, add_no_options),
    "rollback": (verbs.verb_rollback, add_version_option),
    "doctor": (verbs.verb_doctor, add_no_options),
}
NEED_NO_CONFIG = ("doctor",)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        "towerline",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = root.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (run, add_options) in VERBS.items():
        text = (run.__doc__ or "").strip()
        verb = subparsers.add_parser(name, help=text.splitlines()[0], description=text, allow_abbrev=False)
        verb.set_defaults(run=run)
        add_common_options(verb, needs_config=name not in NEED_NO_CONFIG)
        add_options(verb)
    return root


def add_common_options(verb: argparse.ArgumentParser, *, needs_config: bool) -> None:
    """Options that every verb has."""
    verb.add_argument("--config", type=Path, required=needs_config, metavar="FILE.toml", help="the data set's TOML")
    verb.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides one key: towers.embedding_dim=128"
    )
    verb.add_argument("--work", type=Path, metavar="DIR", help="where artifacts go (default: runs/<dataset name>)")
    verb.add_argument("--registry", metavar="URL", help="the registry's folder or URL (default: <work>/registry)")
    verb.add_argument("--json", action="store_true", help="print one JSON object, and no progress")
    verb.add_argument("--quiet", action="store_true", help="show no progress")
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    arguments = parser().parse_args(words[:split])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not arguments.debug:  # Beam and TensorFlow tell of optional parts that are not installed.
        logging.getLogger().setLevel(logging.ERROR)
    try:
        answer: Answer = arguments.run(Call(arguments, tuple(words[split + 1 :])))
    except TowerlineError as err:
        if arguments.debug:
            raise
        print(f"towerline {arguments.verb}: {err}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        if arguments.debug:
            raise
        print(f"towerline {arguments.verb}: the system refused: {err}. Nothing was replaced.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"towerline {arguments.verb}: interrupted; the last finished stage stays", file=sys.stderr)
        return 130
    show(answer, as_json=arguments.json)
    return answer.exit_code


def show(answer: Answer, *, as_json: bool) -> None:
    """Prints an answer: for a machine one object, for a person lines and the written path last."""
    if as_json:
        written = {} if answer.written is None else {"written": str(answer.written)}
        print(json.dumps({**answer.facts, **written}, default=str))
        return
    for line in answer.lines:
        print(line)
    if answer.written is not None:
        print(answer.written)


if __name__ == "__main__":
    sys.exit(main())
