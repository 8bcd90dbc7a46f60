"""One Ray cluster for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a local cluster that says it has two CPUs."""
    ray = pytest.importorskip("ray")
    from coterie.scale.cluster import start_here

    start_here(ray, num_cpus=2)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
