"""The servers are those of the deployment tests; a page that fails a test is photographed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and "browser" in getattr(item, "funcargs", {}):
        pictures = item.funcargs["browser"].photograph(item.name)
        report.sections.append(("Screenshots", "\n".join(map(str, pictures))))
    return report
