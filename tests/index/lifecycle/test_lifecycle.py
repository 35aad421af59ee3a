"""Nights, rollbacks, changes, compactions and kills in any order serve what the model says, in every retriever."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec.config
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.index.lifecycle.machine import Lifecycle, LifecycleInABucket

# Without the phase that explains a failure: it runs the machine hundreds of times.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_every_retriever_serves_what_the_model_says() -> None:
    few = settings(max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=CHECKS, phases=PHASES)
    run_state_machine_as_test(Lifecycle, settings=few)


@pytest.mark.slow
def test_every_retriever_serves_what_the_model_says_for_20_000_steps() -> None:
    many = settings(
        max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=CHECKS, phases=PHASES
    )
    run_state_machine_as_test(Lifecycle, settings=many)


@pytest.fixture(scope="module")
def bucket_machine() -> Iterator[type[LifecycleInABucket]]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LifecycleInABucket, "endpoint", f"http://{host}:{port}")
        patch.setenv("TOWERLINE_CACHE", "unused")
        patch.setitem(fsspec.config.conf, "s3", {})
        yield LifecycleInABucket
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_object_store_serves_the_same_after_a_look(bucket_machine: type[LifecycleInABucket]) -> None:
    few = settings(max_examples=4, stateful_step_count=20, deadline=None, suppress_health_check=CHECKS, phases=PHASES)
    run_state_machine_as_test(bucket_machine, settings=few)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_object_store_serves_the_same_for_2_000_steps(bucket_machine: type[LifecycleInABucket]) -> None:
    many = settings(max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=CHECKS, phases=PHASES)
    run_state_machine_as_test(bucket_machine, settings=many)
