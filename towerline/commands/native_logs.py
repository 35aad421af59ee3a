"""Keeps what native libraries log off the terminal: lines of absl, ScaNN and TensorFlow Lite.

They are written from C++ straight to file descriptor 2. ScaNN has its own copy of absl, which reads no environment
variable and has no binding for its log level; TensorFlow's obeys ``TF_CPP_MIN_LOG_LEVEL``, but not for all lines.
Therefore, while ``hidden`` is active, descriptor 2 is a pipe to a small process that drops such lines and passes on
all others. It is a process, not a thread: it goes on reading while C++ holds Python's lock, and it still passes on the
last words of a process that crashes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator

# absl's "I0000 00:00:1795.. 2673 file.cc:58] ..." below the level of an error, and the notes of TensorFlow Lite.
_NOISE = re.compile(
    rb"^(?:[IW]\d{4} \d\d:\d\d:|WARNING: All log messages before absl::InitializeLog"
    rb"|INFO: (?:Created TensorFlow Lite|Applying|Initialized TensorFlow Lite))"
)


@contextlib.contextmanager
def hidden(*, unless: bool) -> Iterator[None]:
    """Drops native noise, and Python's log records below an error, during the block. Does nothing with ``unless``."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if unless else "3")
    if unless:
        yield
        return
    logging.getLogger().setLevel(logging.ERROR)
    if not _is_the_real_one():
        yield
        return
    sys.stderr.flush()
    real = os.dup(2)
    filtering = _start_filter()
    # Our own messages do not take the detour: they are there at once.
    own, sys.stderr = sys.stderr, os.fdopen(real, "w", buffering=1, encoding=sys.stderr.encoding, closefd=False)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = own
        os.dup2(real, 2)
        _wait_for(filtering)


def _is_the_real_one() -> bool:
    """Whether the error stream writes to descriptor 2; in a test or a notebook it may not."""
    try:
        return sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False


def _start_filter() -> int:
    """Puts a pipe in the place of descriptor 2; what is not noise still gets out. Returns the process's id."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(reading)
        os.dup2(writing, 2)
        os.close(writing)
        return pid
    try:
        # Ctrl-C goes to the whole group: the filter stays until the others are done.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for least, above in ((0, 2), (3, reading), (reading + 1, 1024)):
            os.closerange(least, above)
        _pass_on(reading, 2)
    finally:
        os._exit(0)


def _pass_on(reading: int, target: int) -> None:
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not _NOISE.match(line):
                with contextlib.suppress(OSError):
                    os.write(target, line)


def _wait_for(filtering: int) -> None:
    """Until the last lines are out; not for long, because a worker that is still alive holds the pipe's other end."""
    for _ in range(50):
        if os.waitpid(filtering, os.WNOHANG)[0]:
            return
        time.sleep(0.01)
