"""Alignment: CKA between the layers of the model and those of its twin."""

import shlex

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.page import draw, finding, numbers, origin, plain, requested
from engram_app.explorer.saved import find_saved
from engram_app.explorer.state import Looking, choose_models
from engram_probes.alignment import Alignment


def compute(looking: Looking) -> Alignment | None:
    """A button; once pressed, the alignment, computed here."""
    assert looking.twin is not None
    why = (
        f"No saved alignment of {looking.name} and {looking.twin_name}. Computing one on "
        f"{cached.ALIGNMENT_DOCUMENTS} documents of the synthetic world takes a minute."
    )
    if not requested(f"alignment_{looking.path}_{looking.twin}", "Compute it", why):
        return None
    return cached.alignment(looking.path, looking.twin)


def show(result: Alignment, command: list[str]) -> None:
    finding(result.summary())
    draw(
        result.figure("cka"),
        f"Debiased CKA, {result.samples:,} samples of {result.documents:,} documents",
        "alignment",
    )
    st.caption(
        f"White: the layer of {plain(result.model_b)} that each layer of "
        f"{plain(result.model_a)} is most like (centre of the {result.k} most alike). "
        "Right: the same samples permuted, what chance alone gives."
    )
    numbers(result.soft_frame(), "soft_alignment", "Soft alignment with intervals")
    numbers(result.to_frame(), "alignment", "All pairs of layers, with null and neighbours")
    origin(result, command)


def page() -> None:
    looking = choose_models()
    st.title("Alignment", anchor=False)
    if looking.twin is None:
        st.info("Open a second checkpoint to compare with: `engram explore CKPT TWIN`.")
        return
    result = find_saved(Alignment, looking) or compute(looking)
    if result is None:
        return
    data = ("--data", cached.ALIGNMENT_DATA, "--documents", str(cached.ALIGNMENT_DOCUMENTS))
    show(result, shlex.split(result.provenance.command) or looking.command("cka", *data, twin=True))


page()
