"""A headless Chromium that can reach this machine and nothing else."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

MISSING = (
    "no Chromium in PATH (Debian: apt-get install --no-install-recommends chromium "
    "fonts-dejavu-core)"
)
FLAGS = [
    "--no-sandbox",  # root has none, and only our own server is opened
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def find_chromium() -> str | None:
    """Return the program of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Browser:
    """A running browser and the folder for pictures of what went wrong."""

    context: BrowserContext
    folder: Path

    def open_page(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        return page

    def photograph(self, name: str) -> list[Path]:
        """Save a picture of every open page and return where they are."""
        paths = []
        for number, page in enumerate(self.context.pages):
            if page.url != "about:blank":
                paths.append(self.folder / f"{name}-{number}.png")
                page.screenshot(path=paths[-1])
        return paths


@contextlib.contextmanager
def open_browser(folder: Path, width: int = 1440, height: int = 900) -> Iterator[Browser]:
    """Start a browser with an empty profile; it closes with the block."""
    program = find_chromium()
    assert program is not None, MISSING
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            headless=True,
            args=FLAGS,
            viewport={"width": width, "height": height},
        )
        try:
            yield Browser(context, folder)
        finally:
            context.close()
