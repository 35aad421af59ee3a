"""Forked children that are waited for with a bound: one that hangs fails its test and says where it stood."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """Runs ``work`` in a child; returns its process id. The child's exit code is 0 only if it ended well."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(pid: int, seconds: float = 120.0) -> int:
    """Waits for a child's end. One that takes longer is ended by SIGABRT, where faulthandler prints its stacks."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGABRT)
    time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a forked child did not end within {seconds:g} s; its stacks are on the error stream")


def killed_after(pid: int, seconds: float) -> bool:
    """Kills the child after a while; whether it was still at work."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
