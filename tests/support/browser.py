"""A browser for Airflow's UI, and screenshots for the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import expect, sync_playwright

from dev import REPOSITORY
from dev.airflow.settings import ADMIN

IMAGES = REPOSITORY / "docs" / "images"
CHROMIUM = Path("/usr/bin/chromium")
MAX_BYTES = 200_000


@contextmanager
def browser_page(width: int, height: int) -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield page
        browser.close()


def log_in_to_airflow_2(page: Any, url: str) -> None:
    page.goto(f"{url}/login/")
    page.fill("input[name=username]", ADMIN)
    page.fill("input[name=password]", ADMIN)
    page.click("input[type=submit]")


def save_screenshot(page: Any, name: str) -> None:
    """Save a screenshot for the documentation."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size < MAX_BYTES
