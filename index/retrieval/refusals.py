"""Refused calls: their exceptions hold nothing of the version that refused them.

A caller may keep an exception for ever (a list of failures, an error reporter). Its traceback would keep the frames of
the call, and with them a version and its memory long after the next one is live. The message says what was wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pipelines.contracts.errors import TowerlineError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_frames(err: TowerlineError) -> TowerlineError:
    """The same exception, and those that led to it, without their tracebacks."""
    waiting: list[BaseException | None] = [err]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]
    return err


def refusing(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """A method whose refusals hold no frames below it."""

    @functools.wraps(method)
    def call(*args: _P.args, **named: _P.kwargs) -> _R:
        try:
            return method(*args, **named)
        except TowerlineError as err:
            raise without_frames(err)  # noqa: B904

    return call
