"""Probes that need TransformerLens's hooks: the bridge of a model is made once."""

from collections.abc import Hashable
from typing import Any

import streamlit as st

from engram_app.explorer import cached


@st.cache_resource(max_entries=cached.MOST_MODELS, show_spinner="Hooking the model …")
def _bridge(path: str, stamp: str) -> Any:
    from engram_model.bridge import hooked

    one = cached.held(path)
    return hooked(one.model, one.tokenizer)


def hooked_probe(
    name: str, path: str, *arguments: Hashable, _slow: bool = False, **options: Any
) -> Any:
    """As `cached.probe`, through the model's bridge, which takes longer to make than to run."""

    def compute(one: cached.Held, progress: cached.Progress | None) -> Any:
        import engram_probes

        bridge = _bridge(path, cached.stamp(path))
        told = {"progress": progress} if progress else {}
        return getattr(engram_probes, name)(bridge, one.tokenizer, *arguments, **options, **told)

    key = (name, arguments, tuple(sorted(options.items())))
    return cached.measured(key, (path,), compute, _slow)
