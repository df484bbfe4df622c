"""The sample application's page in a headless Chromium, which `make browser` installs.

Set CENOTE_SCREENSHOTS to a folder to keep screenshots of the page.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from sqlalchemy.engine import make_url
from support.commands import REPOSITORY, clean_environment

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture
def address(empty_dsn: str) -> Iterator[str]:
    """Start the application with its command and return the address it prints."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    url = make_url(empty_dsn).set(drivername="postgresql+asyncpg")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "examples.document_search", "--port", str(port)),
            *("--database-url", url.render_as_string(hide_password=False)),
        ],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    yield found[0]
    process.terminate()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.fixture(params=WIDTHS)
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chrome]:
    """A browser with the width of a desktop, then of a phone."""
    options = ChromeOptions()
    arguments = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    arguments += " disable-background-networking disable-component-update"
    for argument in arguments.split():
        options.add_argument("--" + argument)
    options.add_argument(f"--user-data-dir={tmp_path}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, ChromeService("/usr/bin/chromedriver"))
    width, height = WIDTHS[request.param]
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    yield chrome
    chrome.quit()


class Page:
    """The user's actions on the page."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        elements = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return [element.text for element in elements]

    def wait_until(self, condition: Any) -> None:
        """Wait until the condition holds; errors while the page changes count as false."""
        WebDriverWait(self.browser, 20, ignored_exceptions=[Exception]).until(lambda _: condition())

    def wait_for_message(self, text: str) -> None:
        self.wait_until(lambda: text in self.find("#message").text)

    def search(self, query: str) -> None:
        self.find("#query").clear()
        self.find("#query").send_keys(query)
        self.find("#search button").click()

    def press(self, title: str, button: str) -> None:
        path = f"//*[@id='documents']/li[contains(., '{title}')]//button[text()='{button}']"
        self.browser.find_element(By.XPATH, path).click()

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("CENOTE_SCREENSHOTS"):
            width = self.browser.execute_script("return innerWidth")
            self.browser.save_screenshot(str(Path(folder) / f"{name}-{width}.png"))


def test_the_page(address: str, browser: Chrome) -> None:
    """Users can search, add, re-index and delete; the page never scrolls sideways."""
    page = Page(browser)
    browser.get(address)
    page.wait_until(lambda: len(page.texts("#documents li")) == 3)

    page.search("when is high water?")
    page.wait_for_message("nearest passages")
    assert "Reading a tide table" in page.texts("#results .title")[0]
    scores = [float(score) for score in page.texts("#results .number")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.1
    meter = page.find("#results meter")
    assert float(meter.get_attribute("value")) == pytest.approx(scores[0], abs=0.006)
    page.screenshot("results")

    hostile = "<img src=x onerror=document.title='hurt'> & a zebra"
    page.find("#title").send_keys(hostile)
    page.find("#text").send_keys("A zebra has stripes.\n\nNo two zebras have the same ones.")
    page.find("#add button").click()
    page.wait_for_message("Added")
    assert ": 2 passages." in page.find("#message").text
    page.search("zebra stripes")
    page.wait_until(lambda: hostile in page.texts("#results .title")[0])
    page.wait_until(lambda: "A zebra has stripes." in page.texts("#results .text")[0])
    assert browser.title == "Document search"
    page.screenshot("added")

    page.press("zebra", "Re-index")
    page.wait_for_message("Re-indexed")
    assert ": 2 passages." in page.find("#message").text
    page.press("zebra", "Delete")
    page.wait_for_message("Deleted")
    assert not any("zebra" in text for text in page.texts("#results .text"))

    page.find("#mine").click()
    page.search("rope")
    page.wait_until(lambda: {"· Ann" in title for title in page.texts("#results .title")} == {True})
    page.find("#mine").click()
    page.wait_until(lambda: "Care of ropes" in page.texts("#results .title")[0])

    Select(page.find("#user")).select_by_value("Cleo")
    page.wait_until(lambda: len(page.texts("#documents li")) == 2)
    page.search("the moon")
    page.wait_until(
        lambda: {"· Cleo" in title for title in page.texts("#results .title")} == {True}
    )
    page.screenshot("another-team")

    scrolls_sideways = "return document.documentElement.scrollWidth > innerWidth"
    assert not browser.execute_script(scrolls_sideways)
    log: Any = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []
