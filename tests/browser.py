"""A real browser for tests: Debian's chromium, without a window and without a network of its own making."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from need import need

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def open_browser(place: Path) -> Iterator[Any]:
    """A browser whose profile and downloads lie in `place`; a named skip, or an error in CI, where there is none."""
    need("selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        if os.environ.get("FASTDRPL_REQUIRE_EXTRAS") == "1":
            raise FileNotFoundError("the tests of the report need chromium and chromium-driver")
        pytest.skip("the browser chromium, or its driver, is not installed")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={place / 'profile'}"):
        options.add_argument(flag)
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(place)})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def errors_of(browser: Any) -> list[str]:
    """What the page complained about since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]


def emulate(browser: Any, width: int, height: int, theme: str = "light") -> None:
    """A window of another size, and the colours that its user prefers."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
