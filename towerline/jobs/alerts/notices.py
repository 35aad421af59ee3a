"""Notices: a night as JSON to a command or a webhook. What goes wrong here is logged, and never ends the night."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from typing import Any

from towerline.settings import AlertsSettings

_LOG = logging.getLogger("towerline.alerts")
# Characters of a command's output that are logged.
_SHOWN = 500


def send(message: dict[str, Any], settings: AlertsSettings) -> None:
    """Runs the command and posts to the webhook of ``[alerts]``, whichever are set; failures are logged."""
    content = json.dumps(message, default=str).encode()
    if settings.command is not None:
        _logged("alerts.command", lambda: _run(str(settings.command), content, settings.timeout_seconds))
    if settings.webhook is not None:
        _logged("alerts.webhook", lambda: _post(str(settings.webhook), content, settings.timeout_seconds))


def _logged(key: str, act: Callable[[], str | None]) -> None:
    """Does ``act``, which returns or raises what went wrong."""
    try:
        wrong = act()
    except Exception as err:  # Whatever it is, the night has an error of its own to show.
        wrong = str(err)
    if wrong is not None:
        _LOG.error("%s: the alert was not delivered: %s. Correct %s in the TOML.", key, wrong, key)


def _run(command: str, content: bytes, timeout: float) -> str | None:
    """Runs it in a group of its own, so that what it starts ends with it too."""
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(content, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"the command did not end within {timeout:g} seconds"
    shown = said.decode(errors="replace").strip()[-_SHOWN:]
    return None if process.returncode == 0 else f"the command ended with code {process.returncode}: {shown}"


def _post(url: str, content: bytes, timeout: float) -> str | None:
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return None if 200 <= answer.status < 300 else f"the server answered {answer.status}"
