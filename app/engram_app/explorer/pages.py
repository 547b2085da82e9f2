"""The pages by section, in the order of the sidebar. Importing this runs nothing."""

Pages = dict[str, tuple[str, str, str]]  # name of the file -> title, icon, what the page is about
SECTIONS: dict[str, Pages] = {
    "One text": {
        "overview": ("Overview", "visibility", "What the memory adds to each token of a text."),
        "gates": ("Gates", "tune", "Score, gate and rows of the memory, stream by stream."),
        "slots": ("Slots", "table_rows", "The rows an n-gram reads, and who else lives there."),
        "lens": ("Lens", "layers", "After how many blocks the prediction is settled."),
        "attribution": ("Attribution", "account_tree", "Who wrote this logit."),
        "heads": ("Heads and experts", "hub", "What heads look at and which experts are chosen."),
        "interventions": ("Interventions", "science", "What changes when the memory does."),
    },
    "Two models": {
        "compare": ("Compare", "compare_arrows", "Two models, or two texts: the difference."),
        "alignment": ("Alignment", "grid_on", "Which layers of two models are alike."),
    },
    "On disk": {
        "runs": ("Runs", "folder_open", "Saved reports and results, without a model."),
        "models": ("Models", "deployed_code", "Models at hand, and how to open another."),
    },
}
