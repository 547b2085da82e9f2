"""Many browsers at once that wander through the explorer; what goes wrong and what it costs."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

import numpy as np
import psutil
from browsing import ARGUMENTS, Serving, chromium_path, complaint
from watching import WATCH

EVERY = 5.0  # seconds between two looks at the server's memory
LONGEST = 60.0  # seconds after which an action counts as failed
ERRORS = '[data-testid="stException"], [data-testid="stAlertContentError"]'


@dataclass
class Tally:
    """What all browsers did, what they met, and the server's resident bytes by time."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: Counter = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def summary(self) -> dict:
        every = [second for seconds in self.seconds.values() for second in seconds]
        p50, p95 = (float(q) for q in np.quantile(every, [0.5, 0.95])) if every else (None, None)
        return {
            "actions": {name: len(seconds) for name, seconds in self.seconds.items()},
            "errors": dict(self.errors),
            "seconds": {"p50": p50, "p95": p95},
            "memory": self._memory(),
        }

    def _memory(self) -> dict:
        times, sizes = np.array(self.memory).T
        megabytes = sizes / 2**20
        first, last = times <= times[0] + 60, times >= times[-1] - 60
        return {
            "first_minute_MiB": float(np.median(megabytes[first])),
            "last_minute_MiB": float(np.median(megabytes[last])),
            "largest_MiB": float(megabytes.max()),
            "slope_MiB_a_minute": 60 * float(np.polyfit(times, megabytes, 1)[0]),
        }


class Wanderer:
    """One browser context that does something at random until time is up."""

    def __init__(self, page, tally: Tally, titles: list[str], words: list[str], seed: int) -> None:
        self.page, self.tally, self.titles, self.words = page, tally, titles, words
        self.random = random.Random(seed)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._count("page error", str(error)))

    def _heard(self, message) -> None:
        if said := complaint(message):
            self._count("console", said)

    def _count(self, kind: str, said: str) -> None:
        self.tally.errors[f"{kind}: {said.splitlines()[0][:160]}"] += 1

    async def until(self, end: float) -> None:
        acts = [self.turn, self.turn, self.token, self.token, self.option, self.sentence]
        while monotonic() < end:
            act = self.random.choice(acts)
            begun = monotonic()
            try:
                if not await act():
                    continue
                await self._settle()
            except Exception as error:  # whatever a browser meets is counted, not raised
                if monotonic() < end + LONGEST:
                    self._count(act.__name__, str(error) or type(error).__name__)
                continue
            self.tally.seconds.setdefault(act.__name__, []).append(monotonic() - begun)
            for text in await self.page.locator(ERRORS).all_inner_texts():
                self._count("on the page", text)

    async def _settle(self) -> None:
        await self.page.wait_for_timeout(30)
        await self.page.wait_for_function("() => drawn()", polling=20, timeout=1000 * LONGEST)

    async def turn(self) -> bool:
        title = self.random.choice(self.titles)
        link = self.page.get_by_test_id("stSidebarNav").get_by_text(title, exact=True)
        await link.click()
        return True

    async def _one_of(self, selector: str) -> bool:
        found = self.page.locator(selector)
        count = await found.count()
        if count:
            one = found.nth(self.random.randrange(count))
            await one.click(timeout=10_000)
        else:
            await self.page.wait_for_timeout(20)
        return bool(count)

    async def token(self) -> bool:
        return await self._one_of("button.token")

    async def option(self) -> bool:
        return await self._one_of('[data-testid="stMain"] [data-testid="stButtonGroup"] button')

    async def sentence(self) -> bool:
        box = self.page.get_by_label("Text to read", exact=True)
        if not await box.count():
            return False
        length = self.random.randint(5, 60)
        await box.first.fill(" ".join(self.random.choices(self.words, k=length)))
        await box.first.press("Control+Enter")
        return True


def soak(server: Serving, seconds: int, browsers: int, titles: list[str], words: list[str]) -> dict:
    """Let them wander; actions, errors, times and memory."""
    tally = asyncio.run(_soak(server, seconds, browsers, titles, words))
    said = tally.summary()
    said["tracebacks_in_the_log"] = server.log.read_text().count("Traceback")
    return said


async def _soak(server, seconds, browsers, titles, words) -> Tally:
    from playwright.async_api import async_playwright

    tally = Tally()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        opened = [await _open(browser, server.address) for _ in range(browsers)]
        end = monotonic() + seconds
        watching = asyncio.create_task(_watch(server.process.pid, tally))
        walks = [
            Wanderer(page, tally, titles, words, seed).until(end)
            for seed, page in enumerate(opened)
        ]
        await asyncio.gather(*walks)
        watching.cancel()
        await browser.close()
    return tally


async def _open(browser, address: str):
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * LONGEST)
    await context.add_init_script(WATCH)
    page = await context.new_page()
    await page.goto(address, wait_until="commit")
    await page.wait_for_selector("h1")
    return page


async def _watch(pid: int, tally: Tally) -> None:
    process = psutil.Process(pid)
    while True:
        tally.memory.append((monotonic(), process.memory_info().rss))
        await asyncio.sleep(EVERY)
