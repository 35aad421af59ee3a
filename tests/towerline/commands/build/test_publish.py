"""``towerline publish``: what it prints is where the version is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from index.publishing.publish import Publication
from towerline.commands.build.publish import verb


@pytest.mark.parametrize(
    ("registry", "place"),
    [
        ("memory://bucket/ads/registry", "memory://bucket/ads/registry/versions/v1/manifest.json"),
        ("runs/demo/registry", "runs/demo/registry/versions/v1/manifest.json"),
        ("file:///srv/registry", "/srv/registry/versions/v1/manifest.json"),
    ],
)
def test_the_place_of_the_new_version_is_a_path_or_a_url(registry: str, place: str) -> None:
    project = SimpleNamespace(
        publish=lambda **_: Publication("v1", (), forced=False), config=SimpleNamespace(registry=registry)
    )
    call: Any = SimpleNamespace(project=project)
    assert str(verb(call).written) == place
