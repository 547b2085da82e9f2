"""Serving the explorer and acting on its pages in a browser."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SENTENCE = "The river Danube flows through Vienna and Budapest."
HARMLESS = ("/_stcore/health", "/_stcore/host-config")  # asked for below a page's own path
QUIET = '[data-testid="stApp"][data-test-script-state="notRunning"]'
DRAWN = ".js-plotly-plot .heatmaplayer image"


def chromium_path() -> str | None:
    """The system's Chromium; None: playwright's own."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Serving:
    """A running `engram explore`."""

    address: str
    process: subprocess.Popen
    log: Path


@contextmanager
def serving(log: Path, *paths: str) -> Iterator[Serving]:
    """`engram explore PATHS` on a free port until the end of the block; what it says is in log."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["explore", *paths, "--no-browser", "--port", str(port)]
    command = [sys.executable, "-m", "engram_app", *words]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        server = Serving(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_for(server)
            yield server
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(server: Serving) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{server.address}/_stcore/health", timeout=1)
            return
        except OSError:
            assert server.process.poll() is None, server.log.read_text()
            time.sleep(0.05)
    raise AssertionError(f"no answer from {server.address}: {server.log.read_text()}")


def complaint(message) -> str | None:
    """What an error on the console says, unless it is harmless."""
    harmless = any(path in message.location.get("url", "") for path in HARMLESS)
    return (
        f"{message.text} {message.location}" if message.type == "error" and not harmless else None
    )


def settled(page):
    page.wait_for_selector("h1")
    page.wait_for_selector(QUIET)
    return page


def tokens(page):
    """Texts of the strip, in order."""
    page.wait_for_selector("button.token")
    return page.locator("button.token").all_inner_texts()  # at once: the strip may be redrawn


def pressed(page):
    """Label of the token that is looked at."""
    return page.locator('button.token[aria-pressed="true"]').get_attribute("aria-label")


def type_text(page, text):
    box = page.get_by_label("Text to read")
    box.fill(text)
    box.press("Control+Enter")
    page.wait_for_url(lambda url: "text=" in url)
    settled(page)


def read(page, text):
    """Wait until the strip shows this text."""
    for _ in range(100):
        if "".join(tokens(page)[1:]).replace("·", "") == re.sub(r"\s", "", text):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"the strip shows {tokens(page)}")
