"""Journeys in a browser: the token helped most, proved; the investigations of the docs."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from browsing import QUIET, settled

pytestmark = pytest.mark.browser
DOCS = Path(__file__).parents[2] / "docs" / "explorer.md"
SLOW = 120_000


def finding(page, pattern):
    """Wait until the page's sentence says so."""
    page.locator(".st-key-finding").get_by_text(re.compile(pattern)).wait_for(timeout=SLOW)
    page.wait_for_selector(QUIET)


def test_which_token_the_memory_helps_most_and_the_proof(visit, shots):
    page = visit("/")
    page.locator(".st-key-colour").get_by_text("What it helps").click()
    page.wait_for_url(lambda url: "colour=" in url)
    settled(page)
    finding(page, r"helps most with o \(position 8\)")
    page.get_by_test_id("stSidebarNav").get_by_text("Interventions", exact=True).click()
    finding(page, "Without the memory, “o”")
    page.get_by_role("button", name=re.compile("^token 7 ")).click()
    page.wait_for_url(lambda url: "pos=7" in url)
    settled(page)
    page.get_by_role("button", name="Add this edit").click()
    finding(page, "With zero@pos=7, “o”.* 7.90 nats")
    assert "edit=zero" in page.url
    page.wait_for_timeout(800)
    page.screenshot(path=shots / "interventions.png", full_page=True)
    page.get_by_role("button", name="Undo").click()
    finding(page, "Without the memory, “o”")


def test_an_edit_by_keyboard(visit, shots):
    page = visit("/interventions?pos=7", theme="dark", height=1900)
    finding(page, "Without the memory")
    page.get_by_role("button", name="Add this edit").focus()
    page.keyboard.press("Enter")
    finding(page, "With zero@pos=7")
    page.get_by_role("button", name="zero@pos=7").focus()
    page.keyboard.press("Enter")
    finding(page, "With no edit, no prediction changes")
    page.wait_for_timeout(800)
    page.screenshot(path=shots / "interventions-dark.png")


def links():
    """Every link of the docs into the explorer, without its host."""
    found = re.findall(r"\(http://127\.0\.0\.1:8501(/[^)]*)\)", DOCS.read_text())
    return {unquote(path.replace("+", " ")): path for path in found}


SAID = (  # in the order of the links
    r"falls from 98\.3% to 0\.02%",
    r"7\.90 nats \(a change as large in random directions: 0\.20, -0\.01 to 0\.73",
    r"5\.66 nats",
    r"0\.15 nats",
    r"helps most with ·Paris \(position 6\).*from 0\.2% to 0\.005%",
    r"With 8 edited rows",
)


def test_investigations_of_the_docs_say_what_the_pages_say(visit):
    paths = list(links().values())
    assert len(paths) == len(SAID)
    for path, said in zip(paths, SAID, strict=True):
        finding(visit(path), said)
