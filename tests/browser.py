"""Headless Chromium, for tests of what a person sees; they are skipped where it is not installed (CI installs it)."""

import shutil
import time
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
PATIENCE = 60  # seconds; a busy machine

needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@contextmanager
def browser(folder, width=1400, height=1000, *options):
    """A Selenium driver of a fresh profile below a folder; its console is in `driver.get_log("browser")`."""
    from selenium import webdriver

    settings = webdriver.ChromeOptions()
    settings.binary_location = CHROMIUM
    for option in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        *(f"--window-size={width},{height}", f"--user-data-dir={folder / 'profile'}", *options),
    ):
        settings.add_argument(option)
    settings.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(settings, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def waited(look, satisfied):
    """What there is to see, as soon as it is as wished; what there is in the end, if it never is."""
    end = time.monotonic() + PATIENCE
    while not satisfied(seen := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return seen
