"""Alerts: who hears of which night, what the metrics file has, and that no alert hides the night's own error."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

import towerline
from index.publishing.gates import Verdict
from index.registry.delta_log import DeltaLog
from index.registry.registry import Registry
from pipelines.contracts.errors import ConfigError, GateError, SchemaError
from tests.index.serving_bundles import write_bundle
from tests.worlds import write_marketplace
from towerline.config import Config
from towerline.jobs import refresh
from towerline.jobs.alerts.watch import watched

NOON = 1_764_000_000.0
DAY = 86_400.0
GATE = Verdict("churn", "failed", 0.97, 0.95, "train", "too much")


@dataclass(frozen=True)
class Done:
    """What a night returns."""

    version: str | None = "v2"
    published: bool = True
    verdicts: tuple[Verdict, ...] = ()


class Clock:
    """A clock that a night moves by hand."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def config_of(tmp_path: Path, **alerts: Any) -> Config:
    toml = write_marketplace(tmp_path / "tables", users=20, items=60, events=300)
    config = towerline.open(toml, work=tmp_path / "run").config
    config.work.mkdir(exist_ok=True)
    return config.model_copy(update={"alerts": type(config.alerts)(**alerts)})


def kept_by(file: Path) -> str:
    return f"cat > {file}"


def succeeded_at(config: Config, moment: float) -> None:
    (config.work / "last_success.json").write_text(json.dumps({"ended_at": moment}))


def figures_in(file: Path) -> dict[str, float]:
    """Each sample of the file by its name and its labels but the data set's."""
    found = {}
    for family in text_string_to_metric_families(file.read_text()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("dataset") == "marketplace"
            found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


def raising(error: BaseException) -> Callable[[], Done]:
    def night() -> Done:
        raise error

    return night


def test_a_good_night_sends_nothing_and_is_returned(tmp_path: Path) -> None:
    config = config_of(tmp_path, command=kept_by(tmp_path / "sent"), late_minutes=1.0)
    succeeded_at(config, NOON - DAY)
    done = Done()
    assert watched(config, lambda: done, clock=Clock()) is done
    assert not (tmp_path / "sent").exists()


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (GateError("1 gate(s) failed", [GATE.as_fact()]), "refused", "GateError: 1 gate(s) failed"),
        (SchemaError("no events"), "failed", "SchemaError: no events"),
        (RuntimeError(), "failed", "RuntimeError"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt"),
    ],
)
def test_a_bad_night_is_sent_as_json_and_its_error_goes_on(
    tmp_path: Path, error: BaseException, outcome: str, reason: str
) -> None:
    config = config_of(tmp_path, command=kept_by(tmp_path / "sent"))
    succeeded_at(config, NOON - DAY)
    with pytest.raises(type(error)) as raised:
        watched(config, raising(error), clock=Clock())
    assert raised.value is error
    sent = json.loads((tmp_path / "sent").read_text())
    assert {name: sent[name] for name in ("dataset", "outcome", "reason", "seconds", "version", "published")} == {
        "dataset": "marketplace",
        "outcome": outcome,
        "reason": reason,
        "seconds": 0.0,
        "version": None,
        "published": False,
    }
    assert sent["started_at"] == "2025-11-24T16:00:00+00:00"
    assert sent["last_success_at"] == "2025-11-23T16:00:00+00:00"
    assert sent["verdicts"] == ([GATE.as_fact()] if outcome == "refused" else [])


@pytest.mark.parametrize(
    ("minutes", "since", "late"),
    [
        (61.0, DAY, "it took 61.0 minutes, expected at most 60"),
        (59.0, DAY, None),
        (1.0, DAY + 3_660.0, "ended 25.0 hours earlier"),
        (1.0, DAY + 3_480.0, None),
        (1.0, None, None),
    ],
)
def test_a_night_is_late_by_its_length_or_by_the_age_of_the_last_success(
    tmp_path: Path, minutes: float, since: float | None, late: str | None
) -> None:
    config = config_of(tmp_path, command=kept_by(tmp_path / "sent"), late_minutes=60.0)
    clock = Clock()
    if since is not None:
        succeeded_at(config, NOON + 60.0 * minutes - since)

    def night() -> Done:
        clock.now += 60.0 * minutes
        return Done()

    watched(config, night, clock=clock)
    assert (tmp_path / "sent").exists() == (late is not None)
    if late is not None:
        sent = json.loads((tmp_path / "sent").read_text())
        assert (sent["outcome"], sent["version"], sent["published"]) == ("late", "v2", True)
        assert late in sent["reason"]


def test_a_success_is_remembered_and_a_failure_is_none(tmp_path: Path) -> None:
    config = config_of(tmp_path, command=kept_by(tmp_path / "sent"), late_minutes=60.0)
    watched(config, Done, clock=Clock(NOON))
    with pytest.raises(SchemaError):
        watched(config, raising(SchemaError("no events")), clock=Clock(NOON + DAY))
    assert json.loads((tmp_path / "sent").read_text())["last_success_at"] == "2025-11-24T16:00:00+00:00"
    watched(config, Done, clock=Clock(NOON + 2 * DAY))
    assert "ended 48.0 hours earlier" in json.loads((tmp_path / "sent").read_text())["reason"]
    (config.work / "last_success.json").write_text("damaged")
    (tmp_path / "sent").unlink()
    watched(config, Done, clock=Clock(NOON + 9 * DAY))
    assert not (tmp_path / "sent").exists()


def test_without_alerts_nothing_is_written(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    watched(config, Done, clock=Clock())
    assert list(config.work.iterdir()) == []


def test_no_night_is_late_unless_that_is_asked(tmp_path: Path) -> None:
    config = config_of(tmp_path, command=kept_by(tmp_path / "sent"))
    succeeded_at(config, NOON - 90 * DAY)
    watched(config, Done, clock=Clock())
    assert not (tmp_path / "sent").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo no such room; exit 3", "ended with code 3: no such room"),
        ("sleep 60 & sleep 60", "did not end within 0.2 seconds"),
        ("/nowhere/at/all", "ended with code 127"),
    ],
)
def test_an_alert_that_fails_is_logged_and_the_error_of_the_night_stays(
    tmp_path: Path, command: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, command=command, timeout_seconds=0.2 if "sleep" in command else 20.0)
    begun = time.monotonic()
    with caplog.at_level(logging.ERROR), pytest.raises(SchemaError, match="no events"):
        watched(config, raising(SchemaError("no events")), clock=Clock())
    assert time.monotonic() - begun < 20.0
    assert said in caplog.text
    assert "alerts.command" in caplog.text


@dataclass
class Hook:
    """A server that keeps what it was posted and answers with a status."""

    url: str
    posted: list[dict[str, Any]]
    status: int = 200


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook("", [])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            found.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_a_webhook_gets_the_same_json(tmp_path: Path, hook: Hook) -> None:
    config = config_of(tmp_path, webhook=hook.url, command=kept_by(tmp_path / "sent"))
    with pytest.raises(SchemaError):
        watched(config, raising(SchemaError("no events")), clock=Clock())
    assert hook.posted == [json.loads((tmp_path / "sent").read_text())]


def test_a_webhook_that_refuses_or_is_gone_is_logged(
    tmp_path: Path, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 503
    for url, said in ((hook.url, "503"), ("http://127.0.0.1:9/hook", "refused")):
        with caplog.at_level(logging.ERROR), pytest.raises(SchemaError, match="no events"):
            watched(config_of(tmp_path, webhook=url), raising(SchemaError("no events")), clock=Clock())
        assert said in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("key", "value"),
    [("webhook", "ftp://example.com/x"), ("webhook", "hooks"), ("metrics_file", "night.txt"), ("late_minutes", 0)],
)
def test_alerts_that_cannot_work_are_refused_before_the_night(tmp_path: Path, key: str, value: object) -> None:
    toml = write_marketplace(tmp_path, users=20, items=60, events=300)
    with pytest.raises(ConfigError, match=f"alerts.{key}"):
        towerline.open(toml, overrides=[f"alerts.{key}={json.dumps(value)}"])


def test_the_metrics_file_is_relative_to_the_toml(tmp_path: Path) -> None:
    toml = write_marketplace(tmp_path / "shop", users=20, items=60, events=300)
    config = towerline.open(toml, overrides=["alerts.metrics_file=night.prom"]).config
    assert config.alerts.metrics_file == tmp_path / "shop" / "night.prom"


def test_the_metrics_have_outcome_version_items_and_the_log(tmp_path: Path) -> None:
    file = tmp_path / "metrics" / "night.prom"
    config = config_of(tmp_path, metrics_file=file)
    registry = Registry(config.registry)
    version = registry.publish(write_bundle(tmp_path / "bundle"))
    recall = Verdict("recall against live", "skipped", None, None, "train", "nothing is live yet", 0.21)
    watched(config, lambda: Done(version, verdicts=(GATE, recall)), clock=Clock())
    found = figures_in(file)
    assert found["towerline_night_recall_at_100"] == 0.21
    assert found["towerline_night success"] == 1.0
    assert [found[f"towerline_night {outcome}"] for outcome in ("late", "refused", "failed")] == [0.0] * 3
    assert found[f"towerline_live_version_info {version}"] == 1.0
    assert found["towerline_items"] == registry.open().bundle.num_items
    assert found["towerline_gate_measured churn"] == 0.97
    assert found["towerline_night_success_timestamp_seconds"] == NOON
    assert found["towerline_log_entries"] == 0.0
    clock = Clock(NOON + DAY)
    with pytest.raises(SchemaError):
        watched(config, raising(SchemaError("no events")), clock=clock)
    failed = figures_in(file)
    assert (failed["towerline_night failed"], failed["towerline_night success"]) == (1.0, 0.0)
    assert failed["towerline_night_success_timestamp_seconds"] == NOON
    assert failed["towerline_night_end_timestamp_seconds"] == NOON + DAY
    assert failed["towerline_live_version_age_seconds"] - found["towerline_live_version_age_seconds"] == DAY
    assert list(file.parent.iterdir()) == [file]


def test_metrics_that_cannot_be_written_or_read_hide_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    config = config_of(tmp_path, metrics_file=tmp_path / "file" / "night.prom", command=kept_by(tmp_path / "sent"))
    with caplog.at_level(logging.ERROR), pytest.raises(SchemaError, match="no events"):
        watched(config, raising(SchemaError("no events")), clock=Clock())
    assert "alerts.metrics_file" in caplog.text
    assert (tmp_path / "sent").exists()
    config = config_of(tmp_path, metrics_file=tmp_path / "night.prom")
    damaged = Path(config.registry) / "versions" / "20260101T000000Z-00000000"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{")
    watched(config, Done, clock=Clock())
    assert figures_in(tmp_path / "night.prom")["towerline_night success"] == 1.0


def test_a_night_that_fails_before_its_first_stage_is_sent_too(tmp_path: Path) -> None:
    toml = write_marketplace(tmp_path / "tables", users=20, items=60, events=300)
    (tmp_path / "tables" / "items.parquet").unlink()
    project = towerline.open(toml, work=tmp_path / "run", overrides=[f'alerts.command="{kept_by(tmp_path / "sent")}"'])
    with pytest.raises(SchemaError):
        project.refresh()
    assert "items" in json.loads((tmp_path / "sent").read_text())["reason"]


def test_a_dry_run_sends_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "run", lambda *_, **__: raising(GateError("1 gate(s) failed"))())
    toml = write_marketplace(tmp_path / "tables", users=20, items=60, events=300)
    settings = {"command": kept_by(tmp_path / "sent"), "metrics_file": str(tmp_path / "night.prom")}
    overrides = [f"alerts.{key}={json.dumps(value)}" for key, value in settings.items()]
    project = towerline.open(toml, work=tmp_path / "run", overrides=overrides)
    with pytest.raises(GateError):
        project.refresh(dry_run=True)
    assert not (tmp_path / "sent").exists()
    assert not (tmp_path / "night.prom").exists()


def test_the_log_of_changes_is_counted(tmp_path: Path) -> None:
    config = config_of(tmp_path, metrics_file=tmp_path / "night.prom")
    log = DeltaLog(Registry(config.registry).store)
    for item_id in (3, 4):
        log.append(pa.table({"__item_id__": [item_id], "__change__": ["pause"]}))
    watched(config, Done, clock=Clock())
    found = figures_in(tmp_path / "night.prom")
    assert (found["towerline_log_entries"], found["towerline_log_last_sequence"]) == (2.0, 2.0)
