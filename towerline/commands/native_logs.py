"""Keeps what native libraries log off the terminal: lines of absl, ScaNN and TensorFlow Lite.

They are written from C++ straight to file descriptor 2, before any log level can be set, so environment variables do
not reach them. While ``hidden`` is active, descriptor 2 is a pipe; what is no such line passes through.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
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
    try:
        if sys.stderr.fileno() != 2:
            yield
            return
    except (OSError, ValueError, AttributeError):  # No real error stream, as in a test.
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    reader = threading.Thread(target=_pass_on, args=(reading, kept), name="native logs", daemon=True)
    reader.start()
    # Our own messages do not take the detour: they are there at once, whatever happens to the process.
    own, sys.stderr = sys.stderr, os.fdopen(os.dup(kept), "w", buffering=1, encoding=sys.stderr.encoding)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = own
        os.dup2(kept, 2)
        # A worker that is still alive holds the pipe's other end: nobody waits for it.
        reader.join(timeout=0.5)


def _pass_on(reading: int, target: int) -> None:
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not _NOISE.match(line):
                with contextlib.suppress(OSError):
                    os.write(target, line)
