"""Colours of tokens: one ramp a theme, and text on it that can be read.

Lightness alone orders each ramp, so that it can be read without colour vision. The ends of a
two-sided ramp are those of the figures: orange below, purple above.
"""

from dataclasses import dataclass
from functools import lru_cache

Rgb = tuple[float, float, float]
THEMES = ("light", "dark")
RAMPS = {
    ("light", "one"): ("#FFFFFF", "#FFE9A8", "#FFC94D", "#E08E00", "#9C5700", "#5F3300"),
    ("dark", "one"): ("#11151B", "#4A2C00", "#8A5200", "#D08300", "#FFC04D", "#FFF0C2"),
    ("light", "two"): ("#7F3B08", "#D07A14", "#FCC27C", "#FFFFFF", "#C3BADB", "#8070B0", "#3F1D70"),
    ("dark", "two"): ("#FFE0B5", "#F0A03C", "#8A4E08", "#11151B", "#4B3A86", "#9080D8", "#DED8FF"),
}


@dataclass(frozen=True)
class Scale:
    """What the colours of a strip mean.

    Attributes:
        title: quantity and unit.
        low, high: ends of the scale, where the colour is full.
        centre: value without colour; equal to `low` on a one-sided scale.
    """

    title: str
    low: float
    high: float
    centre: float

    @property
    def kind(self) -> str:
        return "one" if self.centre == self.low else "two"

    def place(self, value: float) -> float:
        """0 to 1 along the ramp; beyond the ends, the end."""
        if self.kind == "one":
            return _clip((value - self.low) / ((self.high - self.low) or 1))
        below = (value - self.low) / ((self.centre - self.low) or 1)
        above = (value - self.centre) / ((self.high - self.centre) or 1)
        return _clip(below / 2 if value < self.centre else 0.5 + above / 2)

    def strength(self, value: float) -> float:
        """0 to 1: how far from the uncoloured value."""
        place = self.place(value)
        return place if self.kind == "one" else abs(2 * place - 1)

    def shades(self, value: float) -> dict[str, list[str]]:
        """theme -> background and text colour."""
        place = round(self.place(value), 3)  # finer than eyes see: most tokens share their shade
        return {theme: list(shade(theme, self.kind, place)) for theme in THEMES}

    def gradients(self) -> dict[str, str]:
        """theme -> CSS gradient of the legend."""
        return {t: f"linear-gradient(90deg, {', '.join(RAMPS[t, self.kind])})" for t in THEMES}


@lru_cache(maxsize=4096)
def shade(theme: str, kind: str, place: float) -> tuple[str, str]:
    """Background at a place along a ramp, and black or white on it, whichever reads better.

    The better of the two has a contrast of at least 4.58 on any colour.
    """
    background = _mix(RAMPS[theme, kind], place)
    black, white = contrast(background, (0, 0, 0)), contrast(background, (1, 1, 1))
    return _hex(background), "#000000" if black >= white else "#FFFFFF"


def contrast(first: Rgb, second: Rgb) -> float:
    """WCAG contrast ratio of two colours, 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def rgb(text: str) -> Rgb:
    """`#RRGGBB` -> 0 to 1."""
    r, g, b = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b


def _mix(ramp: tuple[str, ...], place: float) -> Rgb:
    position = place * (len(ramp) - 1)
    index = min(int(position), len(ramp) - 2)
    share = position - index
    first, second = rgb(ramp[index]), rgb(ramp[index + 1])
    r, g, b = (a + share * (z - a) for a, z in zip(first, second, strict=True))
    return r, g, b


def _hex(colour: Rgb) -> str:
    return "#" + "".join(f"{round(part * 255):02X}" for part in colour)


def _luminance(colour: Rgb) -> float:
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
