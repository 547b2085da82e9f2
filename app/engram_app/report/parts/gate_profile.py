"""Gates over the corpus."""

from dataclasses import dataclass
from typing import cast

import numpy as np

from engram_app.report.parts.base import (
    Figure,
    Inputs,
    KeyNumber,
    Part,
    Results,
    Section,
    frame_table,
    table,
)
from engram_probes.gate_profiles import WHAT, GateProfile

FEW_ENDS = 30


@dataclass(frozen=True)
class Profile(Part):
    name = "gate-profile"
    title = "What opens the gates"
    question = "Do the gates open where names and set phrases end, or for something else?"
    needs = ("memory",)
    rank = 4

    def size(self, inputs: Inputs) -> str:
        return inputs.size

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import gate_profile

        with inputs.bar("gates of the corpus", "documents") as update:
            profile = gate_profile(
                inputs.model,
                inputs.tokenizer,
                inputs.documents,
                max_tokens=None,
                seed=inputs.seed,
                progress=update,
            )
        return {"gate-profile": profile}

    def section(self, results: Results) -> Section:
        profile = _profile(results)
        figures = [_groups(profile)]
        frame = profile.to_frame()
        labelled = frame[frame["auc"].notna()]
        if len(labelled):
            numbers = frame_table("AUC of each layer and stream", labelled)
            caption = "How well each gate tells where a name or a set phrase ends."
            figures.append(Figure("gate-auc", profile.figure("auc"), caption, numbers))
        return Section(
            finding=profile.summary(),
            method=(
                "Over the corpus, every layer and stream; none is picked. The AUC is the "
                "probability that a gate is larger at the last token of a name or phrase than at a "
                "token of no such span, of like frequency and alike in whether it begins a word. "
                "Groups are by mechanism of the span, by how often training told of the name that "
                "ends, and by the surprisal of the next token."
            ),
            caveats=[
                "With several gates a token, one will fit any story; read all of them.",
                "Spans are known for corpora that have them, such as the synthetic world.",
            ],
            figures=figures,
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        """How well gates tell ends of names and phrases, averaged over layers and streams."""
        profile = _profile(results)
        numbers, means = [], []
        for place, label in enumerate(profile.labels):
            auc = profile.auc[place, 0, 0]
            if np.isfinite(auc).all():
                means.append(float(auc.mean()))
                over = f"{profile.positives[place]:,} ends, {profile.documents:,} documents"
                name = f"AUC of the gates at the end of a {WHAT[label]}"
                numbers.append(
                    KeyNumber(f"gates.auc.{label}", name, means[-1], "0.5 is chance", over)
                )
        if not means:
            return []
        name, over = "AUC of the gates, mean over labels", f"{profile.documents:,} documents"
        value = float(np.mean(means))
        return [
            KeyNumber("gates.auc", name, value, "0.5 is chance", over, headline=False),
            *numbers,
        ]

    def alerts(self, results: Results) -> list[str]:
        profile = _profile(results)
        few = [
            f"{number:,} ends of a {WHAT[label]}"
            for label, number in zip(profile.labels, profile.positives, strict=True)
            if 0 < number < FEW_ENDS
        ]
        return [f"The AUC of the gates is over {' and '.join(few)} only."] if few else []


def _profile(results: Results) -> GateProfile:
    return cast(GateProfile, results["gate-profile"])


def _groups(profile: GateProfile) -> Figure:
    read = [g for g in range(len(profile.groups)) if profile.group_tokens[g].any()]
    means = profile.group_mean[read].mean((-1, -2))  # [group, measure]
    numbers = table(
        "Means over layers and streams",
        {
            "tokens that": [profile.groups[g] for g in read],
            "number": profile.group_tokens[read].max(-1),
            **dict(zip(profile.measures, means.T, strict=True)),
        },
    )
    caption = "Mean gate by kind of token, a point for each layer and stream."
    return Figure("gate-groups", profile.figure("groups"), caption, numbers)
