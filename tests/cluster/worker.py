"""A Python worker as a TaskManager starts it: Beam's container contract, without a container."""

from __future__ import annotations

import argparse

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from apache_beam.runners.worker.sdk_worker import SdkHarness


def control_endpoint(provision_endpoint: str, worker_id: str) -> str:
    """Asks the TaskManager where the worker gets its work."""
    with grpc.insecure_channel(provision_endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        answer = stub.GetProvisionInfo(request, metadata=[("worker_id", worker_id)], timeout=30)
    return str(answer.info.control_endpoint.url)


def main() -> None:
    """Works until the TaskManager closes the control channel."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    named, _ = parser.parse_known_args()
    endpoint = control_endpoint(named.provision_endpoint, named.id)
    # As Beam's own worker pool starts one.
    SdkHarness(endpoint, worker_id=named.id, state_cache_size=0, data_buffer_time_limit_ms=-1).run()


if __name__ == "__main__":
    main()
