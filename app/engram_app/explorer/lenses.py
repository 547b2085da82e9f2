"""Lenses of a text: plain or tuned, with the memory or without, of the model or of its twin."""

from pathlib import Path
from typing import Any

from engram_app.explorer import cached
from engram_app.explorer.state import Looking, as_given
from engram_probes.lens import LogitLens
from engram_probes.tuned_lens import TunedLens

LONG = 800  # characters above which a lens may take more than a second
ALONE, OFF, TWIN, OTHER = "alone", "off", "twin", "other"
PLAIN, TUNED = "plain", "tuned"


def has_tuned(path: str) -> bool:
    """Whether a tuned lens lies beside the checkpoint."""
    return (Path(path) / TunedLens.files[0]).is_file()


def no_tuned(path: str) -> str:
    """What to do where there is none."""
    name = as_given(path)
    return (
        f"{Path(path).name} has no tuned lens, so that the plain one is shown. `engram tune-lens "
        f"{name} --data SPEC` trains one on a corpus and saves it beside the checkpoint: a few "
        "minutes on a CPU for a model of this project."
    )


def read(path: str, text: str, through: str = PLAIN, off: bool = False) -> LogitLens:
    """The lens of one text; treat it as read-only."""
    slow = len(text) > LONG
    options: dict[str, Any] = {"without_memory": True} if off else {}
    if through == PLAIN:
        return cached.probe("logit_lens", path, text, _slow=slow, **options)

    def compute(model: cached.Held, progress: cached.Progress | None) -> LogitLens:
        from engram_probes import logit_lens

        lens = TunedLens.load(path)
        return logit_lens(
            model.model, model.tokenizer, text, translators=lens, progress=progress, **options
        )

    tuned = (Path(path) / TunedLens.files[1]).stat().st_mtime_ns
    return cached.measured(("tuned logit_lens", text, off, tuned), (path,), compute, slow)


def beside(lens: LogitLens, looking: Looking) -> dict[str, str]:
    """What the lens can be compared with, and how that is called."""
    names = {ALONE: "Alone"}
    if lens.memory_layers:
        names[OFF] = "Memory off"
    if looking.twin:
        names[TWIN] = looking.twin_name
    if has_tuned(looking.path):
        names[OTHER] = "The other lens"
    return names


def other(looking: Looking, text: str, through: str, what: str) -> LogitLens:
    """The lens to compare with: one of the names of `beside`."""
    if what == OFF:
        return read(looking.path, text, through, off=True)
    if what == TWIN:
        assert looking.twin is not None
        return read(looking.twin, text, through)
    return read(looking.path, text, TUNED if through == PLAIN else PLAIN)


def command(looking: Looking, text: str, through: str, what: str) -> list[str]:
    options = ["--text", text]
    options += ["--tuned"] if through == TUNED else []
    options += ["--without-memory"] if what == OFF else []
    return looking.command("lens", *options, twin=what == TWIN)


def python(looking: Looking, text: str, through: str, what: str) -> str:
    """The same in a notebook."""
    own, its = (f"ep.TunedLens.load({one}.config.name_or_path)" for one in ("model", "twin"))

    def call(model: str, tuned: str | None, off: bool = False) -> str:
        more = f", translators={tuned}" if tuned else ""
        more += ", without_memory=True" if off else ""
        return f"ep.logit_lens({model}, tokenizer, text{more})"

    tuned = through == TUNED
    first = call("model", own if tuned else None)
    seconds = {
        OFF: call("model", own if tuned else None, off=True),
        TWIN: call("twin", its if tuned else None),
        OTHER: call("model", None if tuned else own),
    }
    whole = first if what == ALONE else f"{first}.minus(\n    {seconds[what]}\n)"
    return looking.python(whole, text=text, twin=what == TWIN)
