"""Journeys through the explorer in a real headless Chromium."""

import http.client
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from engram_app.examples import CAPITALS

pytestmark = pytest.mark.browser
SENTENCE = "The river Danube flows through Vienna and Budapest."
HARMLESS = ("/_stcore/health", "/_stcore/host-config")  # asked for below a page's own path
QUIET = '[data-testid="stApp"][data-test-script-state="notRunning"]'
DRAWN = ".js-plotly-plot .heatmaplayer image"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of `engram explore`, with the bundled models."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "engram_app", "explore", "--no-browser", "--port", str(port)]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            _wait_for(f"{address}/_stcore/health", process, log)
            yield address
        finally:
            process.terminate()
            process.wait(20)
    assert "Traceback" not in log.read_text() and "deprecat" not in log.read_text()


def _wait_for(address, process, log):
    for _ in range(120):
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(f"no answer from {address}: {log.read_text()}")


@pytest.fixture
def visit(chromium, server, shots):
    """Function: path -> a page in a fresh session. Afterwards: no error, no foreign address."""
    hosts, errors, contexts = set(), [], []

    def heard(message):
        harmless = any(path in message.location.get("url", "") for path in HARMLESS)
        if message.type == "error" and not harmless:
            errors.append(f"{message.text} {message.location}")

    def open_page(path="/", theme="light", height=900):
        context = chromium.new_context(
            viewport={"width": 1280, "height": height}, color_scheme=theme
        )
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.on("console", heard)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
        page.goto(server + path)
        settled(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert hosts <= {server.removeprefix("http://")}


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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_first_screen_is_a_result(visit, shots, theme):
    page = visit(theme=theme, height=1250)
    assert len(tokens(page)) > 10
    page.get_by_text("The memory adds most at").wait_for()
    page.get_by_role("table", name="Next tokens").wait_for()
    scripts = [e.get_attribute("src") or "" for e in page.locator("script").all()]
    assert not page.locator(".js-plotly-plot").count() and "plotly" not in str(scripts).lower()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"overview-{theme}.png")


def test_typing_a_sentence_changes_the_strip(visit):
    page = visit()
    before = tokens(page)
    type_text(page, SENTENCE)
    read(page, SENTENCE)
    assert tokens(page) != before
    page.get_by_text("Capitals").click()
    read(page, CAPITALS)
    assert page.get_by_label("Text to read").input_value() == CAPITALS


def test_clicked_token_is_kept_on_every_page(visit, shots):
    page = visit()
    type_text(page, SENTENCE)
    read(page, SENTENCE)
    page.get_by_role("button", name=re.compile("^token 3 ")).click()
    page.wait_for_url(lambda url: "pos=3" in url)
    settled(page)
    assert pressed(page).startswith("token 3 ")
    page.get_by_text("position 3").first.wait_for()
    for name in ("Gates", "Lens"):
        page.get_by_test_id("stSidebarNav").get_by_text(name, exact=True).click()
        page.wait_for_selector(DRAWN, state="attached")
        settled(page)
        assert pressed(page).startswith("token 3 ")
        assert page.get_by_label("Text to read").input_value() == SENTENCE
        assert "pos=3" in page.url and "text=The" in page.url
        page.wait_for_timeout(500)
        page.screenshot(path=shots / f"{name.lower()}-clicked.png")


def test_arrow_keys_move_between_tokens(visit):
    page = visit("/?pos=2")
    page.wait_for_selector("button.token")
    page.get_by_role("button", name=re.compile("^token 2 ")).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "pos=3" in url)


def test_permalink_opens_the_same_in_a_fresh_session(visit):
    page = visit(f"/gates?text={SENTENCE}&pos=4")
    page.wait_for_selector(DRAWN, state="attached")
    page.get_by_test_id("stButtonGroup").get_by_text("Gate", exact=True).click()
    page.wait_for_url(lambda url: "what=" in url)
    page.get_by_text("Gate by stream and position").wait_for()
    other = visit(page.url.removeprefix(re.match(r"http://[^/]+", page.url)[0]))
    other.get_by_text("Gate by stream and position").wait_for()
    assert tokens(other) == tokens(page)
    assert pressed(other) == pressed(page) and pressed(other).startswith("token 4 ")


def test_markup_stays_text(visit):
    page = visit()
    markup = "<script>alert(1)</script> <img src=x onerror=alert(2)> **bold** $x$ :red[no]"
    type_text(page, markup)
    read(page, markup)
    page.get_by_role("button", name=re.compile("^token 2 ")).click()
    page.wait_for_url(lambda url: "pos=2" in url)
    settled(page)
    assert page.locator("main img[src=x], [data-testid=stMain] script").count() == 0


@pytest.mark.parametrize(
    ("name", "theme"), [("gates", "dark"), ("lens", "light"), ("alignment", "dark")]
)
def test_page_draws(visit, shots, name, theme):
    page = visit(f"/{name}", theme=theme, height=1700)
    page.wait_for_selector(DRAWN, state="attached")
    settled(page)
    page.wait_for_timeout(800)
    assert page.get_by_role("heading", level=1).count() == 1
    page.screenshot(path=shots / f"{name}-{theme}.png")


def test_error_is_one_line(visit):
    page = visit()
    type_text(page, ".," * 1900)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert re.search(r"[\d,]+ tokens with <bos> and engram-mini reads 1,024", alert.inner_text())


def test_foreign_host_is_refused(server):
    address = server.removeprefix("http://")
    for host, refused in ((address, False), ("evil.example", True)):
        connection = http.client.HTTPConnection(address, timeout=10)
        upgrade = {
            "Host": host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        connection.request("GET", "/_stcore/stream", headers=upgrade)
        status = connection.getresponse().status
        connection.close()
        assert (status == 403) is refused and (status == 101) is not refused
