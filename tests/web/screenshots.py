"""Photograph the web page after a whole run on the robot arm: `make screenshots`.

Everything happens in a temporary copy of the project with a Dagster home of its own; the store and
the runs of the checkout are left alone. Full pictures go to bench/scratch/screenshots, two small
ones for the README to docs/pictures.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "deploy"))

from browser import MISSING, find_chromium, open_browser
from dagsterpage import DagsterPage
from PIL import Image
from sampleproject import ROOT, make_project
from servers import dev_server

FULL = ROOT / "bench" / "scratch" / "screenshots"
SMALL = ROOT / "docs" / "pictures"
N_STEPS = 9  # five assets, and four checks that are steps of their own
N_TRIALS = 1_200  # what data/robot_arm/generate.py makes by default
MARGIN = 6  # the frame of the graph begins 7 beside it
SMALL_WIDTH = 1260  # with the navigation cut off, about 1,000 are left
log = logging.getLogger("screenshots")


def prepare_project(folder: Path) -> Path:
    """Copy the project and generate the whole data set, with the settings of the checkout."""
    project = make_project(folder, N_TRIALS)
    for name in ("dataset.yaml", "train.yaml"):
        shutil.copy(ROOT / "data" / "robot_arm" / name, project / "data" / "robot_arm" / name)
    return project


def photograph(page: DagsterPage, name: str) -> None:
    """Save what the window shows once it has come to rest."""
    rest(page)
    page.page.screenshot(path=FULL / f"{name}.png", animations="disabled")
    log.info("%s", FULL / f"{name}.png")


def rest(page: DagsterPage) -> None:
    """Take the mouse away and wait until the page asks the server for nothing more."""
    page.page.mouse.move(0, 0)
    page.page.wait_for_load_state("networkidle")


def photograph_all(page: DagsterPage) -> None:
    """Run the whole graph by clicks and take every full picture."""
    run_id = page.launch_everything()
    page.wait_for_log("epoch 2/", timeout_s=600)
    photograph(page, "run_training")
    assert page.wait_for_end(timeout_s=600) == "Success"
    page.open(f"/runs/{run_id}")
    page.text(f"Succeeded ({N_STEPS})").wait_for()
    photograph(page, "run")
    page.open_lineage()
    photograph(page, "lineage")
    page.open_asset("trial_shards", view="partitions", partition="b3")
    page.metadata("files").wait_for()
    photograph(page, "bucket")
    page.open_asset("training_set", view="checks")
    page.text("leak_audit").click()
    page.text("Evaluation result").wait_for()
    photograph(page, "checks")
    for asset, pictures in (
        ("training_set", ("sample_windows", "before_and_after_normalization")),
        ("evaluation", ("learning_curve", "predictions", "error_by_trial")),
    ):
        page.open_asset(asset)
        page.metadata(pictures[0]).wait_for()
        photograph(page, asset)
        for name in pictures:
            page.open_picture(name)
            photograph(page, f"{asset}_{name}")
            page.close_dialog(name)


def cut_lineage(page: DagsterPage, to: Path) -> None:
    """Save the row of assets without what is around it."""
    page.page.set_viewport_size({"width": SMALL_WIDTH, "height": 600})
    page.open_lineage()
    rest(page)
    boxes = page.page.locator("svg foreignObject").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().toJSON())"
    )
    left, top = (min(box[side] for box in boxes) for side in ("left", "top"))
    right, bottom = (max(box[side] for box in boxes) for side in ("right", "bottom"))
    save_small(page, (left, top, right, bottom), to)


def cut_training_set(page: DagsterPage, to: Path) -> None:
    """Save the overview from the title to the counts, without the navigation."""
    page.page.set_viewport_size({"width": SMALL_WIDTH, "height": 1100})
    page.open_asset("training_set")
    page.metadata("sample_windows").wait_for()
    rest(page)
    first, last = page.text("Assets").bounding_box(), page.metadata("windows").bounding_box()
    bottom = last["y"] + last["height"] - MARGIN  # no part of the next row
    save_small(page, (first["x"], MARGIN, SMALL_WIDTH - MARGIN, bottom), to)


def save_small(page: DagsterPage, edges: tuple[float, float, float, float], to: Path) -> None:
    """Save a part of the window (left, top, right, bottom) with a margin and few colours."""
    left, top, right, bottom = edges
    clip = {"x": left - MARGIN, "y": top - MARGIN}
    clip |= {"width": right - left + 2 * MARGIN, "height": bottom - top + 2 * MARGIN}
    page.page.screenshot(path=to, clip=clip, animations="disabled")
    with Image.open(to) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(to, optimize=True)
    log.info("%s: %d x %d, %.1f kB", to, *few.size, to.stat().st_size / 1000)


def main() -> int:
    """Take all pictures; 1 if there is no browser."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if find_chromium() is None:
        log.error(MISSING)
        return 1
    for folder in (FULL, SMALL):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trialshards-") as name:
        project, home = prepare_project(Path(name) / "project"), Path(name) / "home"
        home.mkdir()
        shutil.copy(ROOT / "deploy" / "local" / "dagster.yaml", home)
        with dev_server(project, home) as url, open_browser(FULL) as browser:
            page = DagsterPage(browser.open_page(), url)
            photograph_all(page)
            cut_lineage(page, SMALL / "lineage.png")
            cut_training_set(page, SMALL / "training_set.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
