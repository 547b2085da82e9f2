"""What a hostile page, text or link can do to the explorer: one line of refusal."""

import http.client
from urllib.parse import quote

import pytest
from browsing import SENTENCE, read, settled, tokens, type_text

pytestmark = pytest.mark.browser
PASTED = 20 * 2**20  # characters
TRAPS = ["/etc/passwd", "../../etc", "/dev/zero", "/" + "x" * 10_000, "/a%00b", "//evil.example/x"]


def upgrade(server, **headers):
    """Status of the answer to a request for the websocket."""
    address = server.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=60)
    asked = {
        "Host": address,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    try:
        connection.request("GET", "/_stcore/stream", headers=asked)
        return connection.getresponse().status
    finally:
        connection.close()


def test_foreign_pages_and_names_cannot_connect(server):
    assert upgrade(server) == upgrade(server, Origin=server) == 101
    for origin in ("http://evil.example", "null", "http://127.0.0.1.evil.example"):
        assert upgrade(server, Origin=origin) == 403
    assert upgrade(server, Host="evil.example") == 403


def test_pasted_flood_is_answered_and_the_page_lives(visit):
    page = visit()
    box = page.get_by_label("Text to read")
    box.focus()
    page.evaluate("n => document.execCommand('insertText', false, 'boats '.repeat(n / 6))", PASTED)
    box.press("Control+Enter")
    settled(page)
    assert len(box.input_value()) <= 8000
    for alert in page.get_by_role("alert").all():
        assert "\n" not in alert.inner_text().strip().removeprefix("error\n")
    type_text(page, SENTENCE)
    read(page, SENTENCE)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap[:16])
def test_model_in_the_link_that_is_none(visit, trap):
    page = visit(f"/?model={quote(trap, safe='%')}")
    assert one_line(page)


def one_line(page):
    """The only alert, or False: the page shows the models that it has."""
    alerts = page.get_by_role("alert")
    if not alerts.count():
        return len(tokens(page)) > 1
    [said] = alerts.all_inner_texts()
    lines = [line for line in said.splitlines() if line.strip()]
    assert lines[:-1] in ([], ["error"])  # the icon is read as a line of its own
    return said


def test_model_in_the_link_that_brings_its_own_code(visit, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    classes = '{"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}'
    (tmp_path / "config.json").write_text(f'{{"model_type": "evil", "auto_map": {classes}}}')
    page = visit(f"/?model={tmp_path}")
    page.get_by_role("alert").first.wait_for()
    assert one_line(page) and not (tmp_path / "ran").exists()
