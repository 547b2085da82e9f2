"""How fast the explorer answers, in a real browser: median (min to max) against the goals.

    python tests/app/measure_explorer.py [--soak SECONDS] [--browsers N] [--json FILE]
        [CKPT...] [--only PART...]

With --soak, N browsers wander through all pages instead, and errors and memory are counted.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from browsing import ARGUMENTS, Serving, chromium_path, serving
from soaking import soak
from watching import WATCH, begin, took

from engram_app.explorer.pages import SECTIONS
from engram_model.checkpoint import find_checkpoint

PAGES = {name: page[0] for pages in SECTIONS.values() for name, page in pages.items()}
ON_STRIP = "strip().length > 1"
SWITCHES = (("Quantity", 3), ("Stream", 5), ("Layer", 3))  # of Gates, with the options tried
PARTS = ("cold", "first_pages", "sentences", "switches", "long_text", "pages")
TIMES = 3


@dataclass
class Measures:
    """What was measured -> seconds, and the goals."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    goals: dict[str, float] = field(default_factory=dict)

    def note(self, what: str, goal: float, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)
        self.goals[what] = goal

    def table(self) -> str:
        width = max(map(len, self.seconds), default=0)
        return "\n".join(self._row(what, width) for what in self.seconds)

    def _row(self, what: str, width: int) -> str:
        times, goal = self.seconds[what], self.goals[what]
        middle = statistics.median(times)
        kept = "yes" if middle <= goal else "NO"
        spread = f"{middle:6.2f} s ({min(times):.2f} to {max(times):.2f}, {len(times)} times)"
        return f"{what:<{width}}  {spread:<36}  goal {goal:>4.1f} s  {kept}"


class Bench:
    """One browser and one server, and what is measured with them."""

    def __init__(self, browser, server: Serving, words: list[str], measures: Measures) -> None:
        self.browser, self.server, self.words, self.measures = browser, server, words, measures
        self.random = random.Random(0)

    @contextmanager
    def fresh(self, path: str, holds: str) -> Iterator:
        """A page in a new session whose clock began with the request."""
        context = self.browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(120_000)
        context.add_init_script(f"{WATCH}; begin('', () => {holds});")
        page = context.new_page()
        page.goto(self.server.address + path, wait_until="commit")
        yield page
        context.close()

    def first_pages(self) -> None:
        for _ in range(TIMES):
            with self.fresh("/", ON_STRIP) as page:
                self.measures.note("request, warm server: strip drawn", 5, took(page))
        for _ in range(TIMES):
            with self.fresh("/lens", "plots().length && drawn()") as page:
                self.measures.note("first page with a figure: drawn", 8, took(page))

    def pages(self) -> None:
        """Each page from the sidebar: the first visit computes, later ones only draw."""
        with self.fresh("/", f"{ON_STRIP} && drawn()") as page:
            took(page)
            for time in range(1 + TIMES):
                for title in [*list(PAGES.values())[1:], PAGES["overview"]]:
                    self._turn(page, title, "first visit to" if time == 0 else "turned to")

    def _turn(self, page, title: str, what: str) -> None:
        before = page.evaluate("() => window.title()")
        other = f"window.title() && window.title() !== {json.dumps(before)}"
        link = page.get_by_test_id("stSidebarNav").get_by_text(title, exact=True)
        self._after(page, f"{other} && drawn()", "pointerdown", link.click)
        self.measures.note(f"{what} {title}: drawn", 8 if "first" in what else 1.5, took(page))

    def _after(self, page, holds: str, event: str, act: Callable[[], None]) -> None:
        begin(page, holds, event)
        act()

    def text(self, tokens: int) -> str:
        """Words of one token each; the first may take more."""
        return " ".join(self.random.choices(self.words, k=tokens - 4))

    def sentences(self) -> None:
        with self.fresh("/", f"{ON_STRIP} && drawn()") as page:
            took(page)
            for _ in range(2 * TIMES):
                self._type(page, self.text(40), "sentence of 40 tokens typed: on the strip", 1)

    def _type(self, page, text: str, what: str, goal: float) -> None:
        box = page.get_by_label("Text to read")
        box.fill(text)
        shown = json.dumps(text.replace(" ", ""))
        self._after(page, f"read() === {shown}", "keydown", lambda: box.press("Control+Enter"))
        self.measures.note(what, goal, took(page))

    def switches(self) -> None:
        """What is shown on Gates changes: strip and figure, after the model ran."""
        with self.fresh("/gates", f"{ON_STRIP} && pictures() && drawn()") as page:
            took(page)
            for label, most in SWITCHES:
                self._options(page, label, most)

    def _options(self, page, label: str, most: int) -> None:
        group = page.get_by_role("radiogroup", name=label)
        options = group.get_by_role("radio") if group.count() else None
        if options is None or options.count() < 3:  # "all" and the only layer are the same
            return
        for index in [*range(1, min(most, options.count())), 0]:
            before = page.evaluate("() => [colours(), pictures()].map((s) => JSON.stringify(s))")
            new = f"colours() !== {before[0]} && drawn()"
            if label == "Quantity":  # the map holds all streams: of another stream it is the same
                new += f" && pictures() && pictures() !== {before[1]}"
            option = options.nth(index)
            self._after(page, new, "pointerdown", lambda option=option: option.click(force=True))
            self.measures.note(f"{label.lower()} changed: drawn anew", 0.3, took(page))

    def long_text(self) -> None:
        with self.fresh("/", f"{ON_STRIP} && drawn()") as page:
            took(page)
            for _ in range(TIMES):
                self._type(page, self.text(1020), "text of 1,020 tokens typed: on the strip", 3)
                page.wait_for_function("() => drawn()")
                for at in self.random.sample(range(1, 1000), 2):
                    token = page.locator("button.token").nth(at)
                    token.scroll_into_view_if_needed()
                    self._after(page, f"marked() === {at}", "pointerdown", token.click)
                    self.measures.note("token of 1,020 clicked: marked", 0.5, took(page))


def cold(browser, paths: list[str], log: Path, measures: Measures) -> None:
    """From the command to the strip."""
    for _ in range(TIMES):
        begun = perf_counter()
        with serving(log, *paths) as server:
            context = browser.new_context()
            page = context.new_page()
            page.goto(server.address)
            page.wait_for_selector("button.token >> nth=1", timeout=120_000)
            measures.note("cold `engram explore`: strip drawn", 15, perf_counter() - begun)
            context.close()


def single_words(path: str) -> list[str]:
    """Words that are one token of the tokenizer, with the space in front."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(find_checkpoint(path))
    whole = (tokenizer.convert_tokens_to_string([token]) for token in sorted(tokenizer.get_vocab()))
    words = [word[1:] for word in whole if word.startswith(" ") and word[1:].isalpha()]
    return [word for word in words if word.isascii() and 3 <= len(word) <= 6]


def measure(paths: list[str], log: Path, only: list[str]) -> Measures:
    from playwright.sync_api import sync_playwright

    measures = Measures()
    words = single_words(paths[0] if paths else "engram-mini")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        if "cold" in only:
            cold(browser, paths, log, measures)
        with serving(log, *paths) as server:
            bench = Bench(browser, server, words, measures)
            for part in only:
                if part != "cold":
                    attempt(getattr(bench, part))
        browser.close()
    return measures


def attempt(part: Callable[[], None]) -> None:
    """One part that fails leaves the others."""
    from playwright.sync_api import Error

    try:
        part()
    except Error as error:
        print(f"{part.__name__}: {str(error).splitlines()[0]}", file=sys.stderr)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("paths", nargs="*", metavar="CKPT")
    asked.add_argument("--soak", type=int, default=0, metavar="SECONDS")
    asked.add_argument("--browsers", type=int, default=8)
    asked.add_argument("--json", type=Path)
    asked.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if options.soak:
            words = single_words(options.paths[0] if options.paths else "engram-mini")
            with serving(log, *options.paths) as server:
                said = soak(server, options.soak, options.browsers, list(PAGES.values()), words)
                print(json.dumps(said, indent=1), flush=True)
        else:
            measures = measure(options.paths, log, options.only)
            said = {"seconds": measures.seconds, "goals": measures.goals}
            print(measures.table())
    if options.json:
        options.json.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
