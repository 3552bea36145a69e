"""A person at the web page: every step is a click in a real browser on a real server.

One server serves all tests, on a small data set of its own; the order of the file does not matter.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from browser import MISSING, find_chromium, open_browser
from dagsterpage import DagsterPage
from sampleproject import ROOT, make_project
from servers import dev_server

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)
ASSETS = ("catalog", "trial_shards", "training_set", "trained_lstm", "evaluation")
# A constant rate lets a run go on with another number of epochs.
TRAIN = """\
store: store
out: ../../runs/robot_arm
model: {hidden: 8, layers: 1, dropout: 0.0, head: [8]}
data: {batch_size: 64, steps_per_epoch: 10}
optimizer: {schedule: constant}
early_stopping: null
epochs: 2
"""
N_TRIALS, N_BROKEN = 60, 12


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project that knows the robot arm alone, with few trials and a tiny model."""
    project = make_project(tmp_path_factory.mktemp("web") / "project", N_TRIALS)
    for folder in (project / "pipeline" / "defs").iterdir():
        if folder.is_dir() and folder.name != "robot_arm":
            shutil.rmtree(folder)
    (project / "data" / "robot_arm" / "train.yaml").write_text(TRAIN)
    return project


@pytest.fixture(scope="module")
def url(project):
    home = project.parent / "home"
    home.mkdir()
    shutil.copy(ROOT / "deploy" / "local" / "dagster.yaml", home)
    with dev_server(project, home) as url:
        yield url


@pytest.fixture(scope="module")
def browser(project):
    with open_browser(project.parent) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    tab = browser.open_page()
    yield DagsterPage(tab, url)
    tab.close()


@pytest.fixture(scope="module")
def outcome(browser, url):
    """How the run ended that one gets by clicking "Materialize all" and the launchpad."""
    page = DagsterPage(browser.open_page(), url)
    page.launch_everything()
    outcome = page.wait_for_end(timeout_s=150)
    page.page.close()
    return outcome


@contextlib.contextmanager
def changed(file: Path, old: str, new: str) -> Iterator[None]:
    """Replace a text in a file for a while."""
    text = file.read_text()
    assert text.count(old) == 1, text
    file.write_text(text.replace(old, new))
    try:
        yield
    finally:
        file.write_text(text)


def test_the_lineage_page_shows_the_graph(page):
    page.open_lineage()
    for asset in ASSETS:
        assert page.text(asset).is_visible(), asset
    assert page.arrows() == set(itertools.pairwise(ASSETS))


def test_no_page_needs_the_network(page, url):
    asked = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.open_lineage()
    hosts = {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def test_the_whole_graph_runs_from_the_launchpad(page, project, outcome):
    assert outcome == "Success"
    assert (project / "data" / "robot_arm" / "store" / "latest.json").exists()
    assert (project / "runs" / "robot_arm" / "evaluation" / "metrics.json").exists()


def test_the_training_set_page_shows_counts_tables_and_pictures(page, outcome):
    page.open_asset("training_set")
    page.metadata("trials").wait_for()
    assert page.metadata_text("trials") == str(N_TRIALS)
    assert page.metadata_text("quarantined") == str(N_BROKEN)
    assert page.metadata_text("files") == str(N_TRIALS + N_BROKEN)
    splits = page.metadata("splits").locator("tbody tr")
    assert [row.split("\t")[0] for row in splits.all_inner_texts()] == ["train", "val", "test"]
    trials = sum(int(row.split("\t")[1]) for row in splits.all_inner_texts())
    assert trials == N_TRIALS
    refused = page.metadata("quarantine").locator("tbody tr").all_inner_texts()
    assert len(refused) == N_BROKEN
    (row,) = [row for row in refused if "s05/trial_0012.csv" in row]
    assert "267" in row
    assert "not_a_number" in row
    assert "'17.83r' is no number; correct it" in row
    for name in ("sample_windows", "trial_lengths", "missing_values"):
        picture = page.open_picture(name)
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
        page.close_dialog(name)


def test_the_evaluation_page_shows_errors_and_the_learning_curve(page, outcome):
    page.open_asset("evaluation")
    errors = page.metadata("errors").locator("tbody tr")
    errors.first.wait_for()
    assert [row.split("\t")[0] for row in errors.all_inner_texts()] == ["q1", "tau1", "tau2"]
    picture = page.open_picture("learning_curve")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100


def test_one_bucket_is_built_alone(page, outcome):
    page.launch_partition("trial_shards", "b3")
    assert page.wait_for_end() == "Success"
    page.open_asset("trial_shards", view="partitions", partition="b3")
    page.metadata("reused").wait_for()
    assert page.metadata_text("reused") == "true"
    numbers = {key: int(page.metadata_text(key)) for key in ("files", "files_read", "trials")}
    assert numbers["files"] > 0 == numbers["files_read"] == numbers["trials"]


def test_a_failed_check_stops_the_training_and_names_the_files(page, project, outcome):
    checkpoint = project / "runs" / "robot_arm" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    spec = project / "data" / "robot_arm" / "dataset.yaml"
    with changed(spec, "max_quarantined: 0.5", "max_quarantined: 0"):
        page.reload_definitions()
        page.launch_selected("training_set", "trained_lstm")
        assert page.wait_for_end() == "Failure"
        page.wait_for_log("max_quarantined allows 0.0%")
    assert checkpoint.stat().st_mtime_ns == before
    page.open_asset("training_set", view="checks")
    page.text("quarantine_share").click()
    page.page.get_by_text("12 of 72 files were refused").wait_for()
    said = page.page.locator("body").inner_text()
    assert "raw/s05/trial_0012.csv" in said
    assert "Mend the files, follow the advice above, or raise max_quarantined." in said


@pytest.mark.skipif(
    not os.environ.get("SOAK"),
    reason="SOAK=1; tests/test_command_training.py terminates one in the gate, without the page",
)
def test_a_terminated_training_goes_on_where_it_was(page, project, outcome):
    settings = project / "data" / "robot_arm" / "train.yaml"
    checkpoint = project / "runs" / "robot_arm" / "last.ckpt"
    with changed(settings, "epochs: 2", "epochs: 1000000"):
        page.launch_asset("trained_lstm")
        page.wait_for_log("epoch 5/1000000")
        page.terminate()
        assert page.wait_for_end() == "Canceled"
    with changed(settings, "epochs: 2", "epochs: 3"):  # fewer than are done: it ends at once
        n_epochs, step = steps_of(checkpoint)
        assert n_epochs >= 5
        page.execute_again()
        page.wait_for_log(f"after {n_epochs} epochs, at step {step}")
        assert page.wait_for_end() == "Success"


def steps_of(checkpoint: Path) -> tuple[int, int]:
    """Return finished epochs and steps of a checkpoint."""
    from training.checkpoint import load_checkpoint

    state = load_checkpoint(checkpoint)["state"]
    return state["epoch"], state["step"]
