"""A Flink cluster on this machine: a JobManager, two TaskManagers, Beam's job server.

Each is a process of its own; no containers. A TaskManager starts its Python workers itself (Beam's environment
``PROCESS``). One worker pool for both would not do: both name their workers 1-1, 2-1, ..., the pool knows workers by
that name alone, and so one TaskManager that ends its worker ends the other's, again and again after a restart.

Flink's jars come from the PyPI package ``apache-flink-libraries`` (its source archive, 1.19), Beam's job server from
Maven by ``flink-job-server.xml``; both are kept in a cache folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLINK = "1.19.3"
_POM = Path(__file__).parent / "flink-job-server.xml"
# Java 17 hides what Flink 1.19 reaches into: the list of Flink's own default configuration.
_PACKAGES = ("lang", "net", "io", "nio", "lang.reflect", "text", "time", "util", "util.concurrent")
_PACKAGES += ("util.concurrent.atomic", "util.concurrent.locks")
_OPENS = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _PACKAGES]
_OPENS += ["--add-opens=java.base/sun.nio.ch=ALL-UNNAMED", "--add-exports=java.base/sun.net.util=ALL-UNNAMED"]
_MEMORY = {
    "task.heap.size": "384m",
    "task.off-heap.size": "64m",
    "framework.heap.size": "128m",
    "framework.off-heap.size": "128m",
    "managed.size": "192m",
    "network.min": "64m",
    "network.max": "64m",
    "jvm-metaspace.size": "256m",
    "jvm-overhead.min": "192m",
    "jvm-overhead.max": "192m",
}
# Every process logs to its own file of the cluster's folder: what was restarted, when and why.
_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = Console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss.SSS} %-5p %c{1} %m%n
"""


def fetch(cache: Path) -> None:
    """Downloads Flink and the job server into the cache folder, once."""
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "flink" / "lib").exists():
        aside = cache / "flink.part"
        shutil.rmtree(aside, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(aside)]
        subprocess.run([*command, f"apache-flink-libraries=={FLINK}"], check=True)
        with tarfile.open(next(aside.glob("*.tar.gz"))) as packed:
            # Pythons before 3.11.4 know no filter, those from 3.12 on want one.
            safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            packed.extractall(aside / "unpacked", **safely)
        (next((aside / "unpacked").iterdir()) / "deps").rename(cache / "flink")
        shutil.rmtree(aside)
    if not (cache / "job-server").exists():
        aside = cache / "job-server.part"
        shutil.rmtree(aside, ignore_errors=True)
        command = ["mvn", "-B", "-q", "-f", str(_POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        subprocess.run([*command, f"-DoutputDirectory={aside}"], check=True)
        aside.rename(cache / "job-server")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """Running processes by name; ``beam_args`` sends a job there."""

    folder: Path
    cache: Path
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ports = {name: free_port() for name in ("rpc", "rest", "job", "artifact")}
        self._configure()
        try:
            self._java("jobmanager", "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint")
            for number in (1, 2):
                self.start_task_manager(number)
            self._job_server()
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def beam_args(self) -> list[str]:
        """What sends a Beam job to this cluster."""
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self.ports['job']}",
            f"--artifact_endpoint=localhost:{self.ports['artifact']}",
            "--environment_type=PROCESS",
            f"--environment_option=process_command={self.folder}/worker",
            "--parallelism=2",
        ]

    def start_task_manager(self, number: int) -> None:
        """Starts a TaskManager; it joins the cluster by itself."""
        self._java(f"taskmanager-{number}", "org.apache.flink.runtime.taskexecutor.TaskManagerRunner")

    def python_workers(self) -> list[int]:
        """Process ids of the Python workers that the TaskManagers have started."""
        managers = {process.pid for name, process in self.processes.items() if name.startswith("taskmanager")}
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # It has ended meanwhile.
                continue
            if parent in managers:
                found.append(int(status.parent.name))
        return sorted(found)

    def kill(self, process: int) -> None:
        """Kills a process of the cluster, without any warning to it."""
        os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        """Ends every process of the cluster."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _configure(self) -> None:
        settings = {
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": self.ports["rpc"],
            "jobmanager.memory.process.size": "1024m",
            "rest.address": "localhost",
            "rest.port": self.ports["rest"],
            "taskmanager.numberOfTaskSlots": 1,
            "taskmanager.cpu.cores": 1,
            "heartbeat.timeout": 20_000,
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 5,
            "restart-strategy.fixed-delay.delay": "1 s",
            **{f"taskmanager.memory.{name}": size for name, size in _MEMORY.items()},
        }
        text = "".join(f"{name}: {value}\n" for name, value in settings.items())
        (self.folder / "flink-conf.yaml").write_text(text)
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        worker = self.folder / "worker"
        worker.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.cluster.worker "$@"\n')
        worker.chmod(0o755)

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
            )

    def _java(self, name: str, main: str) -> None:
        logging = f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties"
        options = ["-Xmx512m", "-XX:MaxDirectMemorySize=300m", logging, *_OPENS, "-cp", f"{self.cache}/flink/lib/*"]
        self._start(name, ["java", *options, main, "--configDir", str(self.folder)])

    def _job_server(self) -> None:
        ports = [f"--job-port={self.ports['job']}", f"--artifact-port={self.ports['artifact']}", "--expansion-port=0"]
        where = [f"--flink-master=localhost:{self.ports['rest']}", f"--artifacts-dir={self.folder}/artifacts"]
        main = "org.apache.beam.runners.flink.FlinkJobServerDriver"
        self._start(
            "job-server", ["java", "-Xmx512m", *_OPENS, "-cp", f"{self.cache}/job-server/*", main, *ports, *where]
        )

    def _await_ready(self, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._ready():
                return
            time.sleep(0.5)
        raise TimeoutError(f"the cluster did not come up in {seconds} s; its logs are in {self.folder}")

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://localhost:{self.ports['rest']}/overview", timeout=2) as answer:
                if b'"taskmanagers":2' not in answer.read():
                    return False
            socket.create_connection(("localhost", self.ports["job"]), timeout=2).close()
        except OSError:
            return False
        return True
