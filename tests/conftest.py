"""Shared settings: Hypothesis profiles, and the tests' own importable code."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile(
    "house", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decode no shard into the cache of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIALSHARDS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
