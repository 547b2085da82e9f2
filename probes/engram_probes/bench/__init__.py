"""The probes against what one would use instead, side by side in one run, correctness first."""

from engram_model.bench import stages

STAGES = stages(
    "engram_probes.bench",
    {"all_pairs": "cka", "lens": "lens", "lens_peer": "lens", "capture": "capture"},
    gpu=False,
    kind="probes",
)
