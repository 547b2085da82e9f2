"""Timing what a page shows, in the page itself: looked at every few milliseconds."""

from browsing import QUIET

EVERY = 8  # milliseconds between two looks
HELD = 150  # milliseconds that a state must last; its first moment counts
UNDERWAY = ", ".join(f'[data-testid="st{name}"]' for name in ("Skeleton", "Spinner", "Progress"))
WATCH = """
const shadows = () => [...document.querySelectorAll("*")].filter((e) => e.shadowRoot);
const within = (root) => root?.querySelector("button.token") ? root : null;
let holder = null;  // looked for once: the strip is redrawn inside it
const strip = () => {
  if (!holder?.isConnected || !within(holder.shadowRoot)) {
    holder = shadows().find((e) => within(e.shadowRoot)) ?? null;
  }
  const root = holder?.shadowRoot ?? document;
  return [...root.querySelectorAll("button.token")];
};
window.strip = strip;
window.read = () => strip().slice(1).map((e) => e.firstChild?.nodeValue ?? "").join("");
window.colours = () => strip().map((e) => e.style.background).join();
window.marked = () => strip().findIndex((e) => e.getAttribute("aria-pressed") === "true");
window.plots = () => [...document.querySelectorAll(".stPlotlyChart .js-plotly-plot")];
window.pictures = () => plots()
  .flatMap((e) => [...e.querySelectorAll(".heatmaplayer image")])
  .map((image) => image.href.baseVal).join();
window.title = () => document.querySelector("h1")?.textContent;
window.quiet = () =>
  document.querySelector('QUIET') && !document.querySelector('[data-stale="true"], UNDERWAY');
window.drawn = () => quiet() && [...document.querySelectorAll(".stPlotlyChart")].every(
  (e) => e.querySelector(".main-svg"));
// took: milliseconds from the first `event`, or from the request, until `holds` holds for a while
window.begin = (event, holds) => {
  let start = event ? null : 0, since = null;
  window.took = undefined;
  if (event) document.addEventListener(event, () => { start ??= performance.now(); },
    { capture: true, once: true });
  const timer = setInterval(() => {
    if (start === null || !holds()) { since = null; return; }
    const now = performance.now();
    since ??= now;
    if (now - since < HELD) return;
    clearInterval(timer);
    window.took = since - start;
  }, EVERY);
};
"""
for name, value in {"QUIET": QUIET, "UNDERWAY": UNDERWAY, "HELD": HELD, "EVERY": EVERY}.items():
    WATCH = WATCH.replace(name, str(value))


def begin(page, holds: str, event: str = "") -> None:
    """Start the clock at the next `event`; stop it when the JavaScript expression holds."""
    page.evaluate(f"() => begin({event!r}, () => {holds})")


def took(page, timeout: float = 60_000) -> float:
    """Seconds that it took."""
    page.wait_for_function("() => window.took !== undefined", timeout=timeout)
    return page.evaluate("() => window.took") / 1000
