"""Shared settings: Hypothesis profiles, and the tests' own importable code."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# Where a test says nothing else: half of Hypothesis' own number, twice that number with SOAK=1.
# The gate draws the same examples each time, so that it judges the change and not the draw; new
# ones are drawn by `make soak`. How long or how often a draw is rejected is no fault of a test.
SOAK = bool(os.environ.get("SOAK"))
settings.register_profile(
    "house", deadline=None, max_examples=200 if SOAK else 50, derandomize=not SOAK,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow,
    ],
)  # fmt: skip
settings.load_profile("house")

# Read when `datasets` is first imported, by whomever: nothing in the tests asks its hub.
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")

gc.disable()  # for as long as tests are collected: a million objects, all of which stay


# Files that take longest: first, so that no process ends alone with one of them. The others follow
# in their own order, which `--no-loadscope-reorder` keeps.
LONGEST = ("test_web_page", "test_deploy_native", "test_examples", "test_readme", "test_exact")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    last = len(LONGEST)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, last))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what was collected out of the sight of the garbage collector: it costs 0.5 s a time."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decode no shard into the cache of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIALSHARDS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _quick_fsync() -> Iterator[None]:
    """Wait for no disk: power cuts happen on a disk of the tests' own (`crash/harness.py`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", _check_descriptor)
        yield


def _check_descriptor(descriptor: int) -> None:
    """Raise what fsync does of a descriptor that is closed."""
    os.fstat(descriptor)
