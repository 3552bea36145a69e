"""What a person clicks on Dagster's web page, as methods.

Dagster's production build has next to no test ids, so things are found by what they say; a
button's accessible name also holds its icon's, which is why buttons are filtered by text.
"""

from __future__ import annotations

import re
from urllib.parse import urlencode

from playwright.sync_api import Locator, Page

LOCATION = "trialshards"
ENDED = re.compile(r"^(Success|Failure|Canceled)$")
# The ends of every arrow between two asset boxes, by the names of the nearest boxes.
EDGES = """
() => {
  const names = [...document.querySelectorAll('svg foreignObject *')]
    .filter(e => e.children.length === 0 && /^[a-z_]+$/.test(e.textContent.trim()))
    .map(e => ({name: e.textContent.trim(), box: e.getBoundingClientRect()}));
  const middle = box => (box.left + box.right) / 2;
  const nearest = (x, side) => names
    .filter(n => side * (middle(n.box) - x) > 0)
    .sort((a, b) => side * (middle(a.box) - middle(b.box)))[0]?.name;
  return [...document.querySelectorAll('svg path[marker-end]')]
    .map(path => path.getBoundingClientRect())
    .map(box => [nearest(box.left, -1), nearest(box.right, 1)]);
}
"""


class DagsterPage:
    """One browser tab on the web page of a data set.

    Args:
        page: The tab.
        url: Address of the webserver.
        group: Name of the data set: asset group, key prefix and job.
    """

    def __init__(self, page: Page, url: str, group: str = "robot_arm") -> None:
        self.page, self.url, self.group = page, url, group

    def open(self, path: str) -> None:
        self.page.goto(self.url + path, wait_until="domcontentloaded")

    def open_lineage(self) -> None:
        """Open the graph of the data set's assets."""
        self.open(f"/locations/{LOCATION}/asset-groups/{self.group}/lineage")
        self.text("evaluation").wait_for()

    def open_asset(self, name: str, **query: str) -> None:
        self.open(f"/assets/{self.group}/{name}" + (f"?{urlencode(query)}" if query else ""))

    def text(self, text: str) -> Locator:
        """Return the first element that says exactly this."""
        return self.page.get_by_text(text, exact=True).first

    def button(self, text: str) -> Locator:
        return self.page.get_by_role("button").filter(has_text=text).first

    def dialog(self, text: str) -> Locator:
        """Return the open dialog that says this somewhere."""
        return self.page.get_by_role("dialog").filter(has_text=text)

    def arrows(self) -> set[tuple[str, str]]:
        """Return from which asset to which the arrows of the lineage page lead."""
        self.page.locator("svg path[marker-end]").first.wait_for(state="attached")
        return {(start, end) for start, end in self.page.evaluate(EDGES)}

    def reload_definitions(self) -> None:
        self.open_lineage()
        self.button("Reload definitions").click()
        self.page.get_by_text("Definitions reloaded").first.wait_for(timeout=60_000)

    def launch_everything(self) -> str:
        """Start one run over the whole graph by the launchpad; return its id."""
        self.open_lineage()
        self.button("Materialize all").locator("xpath=following::button[1]").click()
        self.page.get_by_text("Open launchpad").click()
        self.dialog("Launchpad").get_by_role("button").filter(has_text="Materialize").click()
        self.dialog("Are you sure?").get_by_role("button").filter(has_text="Confirm").click()
        return self._run_id()

    def launch_selected(self, *assets: str) -> str:
        """Tick assets in the group's list, start a run of them; return its id."""
        self.open_lineage()
        self.page.get_by_role("tab").filter(has_text="List").click()
        for asset in assets:
            box = self.page.get_by_test_id(f"checkbox-{self.group}/{asset}")
            self.page.locator("label").filter(has=box).click()
        self.button(f"Materialize selected ({len(assets)})").click()
        return self._follow_toast()

    def launch_partition(self, asset: str, partition: str) -> str:
        """Choose one partition in an asset's dialog, start a run of it; return its id."""
        self.open_asset(asset)
        self.button("Materialize").click()
        dialog = self.dialog("Launch runs to materialize")
        dialog.get_by_text("Select a partition or create one").click()
        self.text(partition).click()
        self.page.keyboard.press("Escape")  # closes the list, not the dialog
        dialog.get_by_role("button").filter(has_text="Launch 1 run").click()
        return self._follow_toast()

    def launch_asset(self, asset: str) -> str:
        """Start a run of one asset; return its id."""
        self.open_asset(asset)
        self.button("Materialize").click()
        return self._follow_toast()

    def execute_again(self) -> str:
        """Press "Re-execute all" on the page of a run that has ended; return the new run's id."""
        old = self._run_id()
        self.button("Re-execute all").click()
        self.page.wait_for_url(lambda url: "/runs/" in url and old not in url)
        return self._run_id()

    def terminate(self) -> None:
        """Press "Terminate" on the page of a run."""
        self.button("Terminate").click()
        dialog = self.dialog("Terminate runs")
        dialog.get_by_role("button").filter(has_text="Terminate 1 run").click()
        dialog.get_by_role("button").filter(has_text="Done").click()

    def wait_for_end(self, timeout_s: float = 90) -> str:
        """Watch the page of a run until it says how the run ended; return that."""
        # Only in the header: a panel below it says how earlier runs of a re-execution ended.
        name = self.text(self._run_id()[:8])
        header = name.locator("xpath=ancestor::div[contains(., 'View tags and config')][1]")
        status = header.get_by_text(ENDED)
        status.wait_for(timeout=timeout_s * 1000)
        return status.inner_text()

    def wait_for_log(self, text: str, timeout_s: float = 60) -> None:
        """Wait until the log on the page of a run says this."""
        self.page.get_by_text(text).first.wait_for(timeout=timeout_s * 1000)

    def metadata(self, key: str) -> Locator:
        """Return the row of the metadata table of an asset or a partition."""
        name = self.page.get_by_text(key, exact=True)
        return self.page.locator("tr").filter(has=name).first

    def metadata_text(self, key: str) -> str:
        """Return what a row of the metadata table says beside its key and time."""
        cells = self.metadata(key).locator("td").all_inner_texts()
        return [cell.strip() for cell in cells if cell.strip()][-1]

    def open_picture(self, key: str) -> Locator:
        """Open a picture among the metadata in its dialog and return it."""
        self.metadata(key).get_by_text("Show Markdown").click()
        picture = self.dialog(key).locator("img")
        picture.wait_for()
        return picture

    def close_dialog(self, text: str) -> None:
        """Close the dialog that says this, and wait until it is gone."""
        dialog = self.dialog(text)
        dialog.get_by_role("button").filter(has_text="Close").click()
        dialog.wait_for(state="hidden")

    def _follow_toast(self) -> str:
        toast = self.page.get_by_text("Launched run")
        toast.first.wait_for()
        self.page.get_by_text("View", exact=True).last.click()
        return self._run_id()

    def _run_id(self) -> str:
        self.page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
        return self.page.url.split("/runs/")[1][:36]
