"""Two tiny models, one with memories and four streams, one plain, and a few texts."""

import pytest


@pytest.fixture(scope="session")
def hooks_of():
    """Function: model -> its forward hooks. Some are transformers' own, installed at need."""

    def hooks(model) -> list:
        pairs = ((m._forward_pre_hooks, m._forward_hooks) for m in model.modules())
        return [hook for pair in pairs for hooks in pair for hook in hooks.values()]

    return hooks


@pytest.fixture(scope="session")
def engram(make_model):
    return make_model(streams=4)


@pytest.fixture(scope="session")
def twin(make_model):
    return make_model(streams=1, memory_layers=(), seed=3)


@pytest.fixture(scope="session")
def texts():
    people = ("harbour master", "miller", "boatman", "smith")
    return [
        f"The {people[i % 4]} of Varnholm counts {i * 37 % 101} boats " + "at dusk. " * (1 + i % 3)
        for i in range(24)
    ]


@pytest.fixture(scope="session")
def gates(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.gate_map(engram, tokenizer, texts[1])


@pytest.fixture(scope="session")
def slot_index(engram, tokenizer, texts):
    from engram_probes.slot_index import build_index

    return build_index(engram, tokenizer, texts)


@pytest.fixture(scope="session")
def slots(engram, tokenizer, texts, slot_index):
    import engram_probes as ep

    return ep.inspect_slots(engram, tokenizer, texts[1], slot_index)


@pytest.fixture(scope="session")
def row_load(slot_index, tokenizer):
    import engram_probes as ep

    return ep.row_load(slot_index, tokenizer)


@pytest.fixture(scope="session")
def rows_of_ngram(slots, engram, tokenizer, slot_index):
    """The rows that the n-grams at position 6 of the traced text read."""
    import engram_probes as ep

    ids = slots.token_ids[4:7].tolist()
    return ep.inspect_rows(engram, tokenizer, ngram=ids, corpus=slot_index, most=3, topk=5)


@pytest.fixture(scope="session")
def contexts(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.row_contexts(engram, tokenizer, texts, k=3)


@pytest.fixture(scope="session")
def audit(slot_index, tokenizer):
    import engram_probes as ep

    return ep.audit_compression(tokenizer, raw_counts=slot_index.raw_counts)


@pytest.fixture(scope="session")
def lens(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.logit_lens(engram, tokenizer, texts)


@pytest.fixture(scope="session")
def text_lens(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.logit_lens(engram, tokenizer, texts[1])


@pytest.fixture(scope="session")
def text_lens_off(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.logit_lens(engram, tokenizer, texts[1], without_memory=True)


@pytest.fixture(scope="session")
def twin_lens(twin, tokenizer, texts):
    import engram_probes as ep

    return ep.logit_lens(twin, tokenizer, texts)


@pytest.fixture(scope="session")
def alignment(engram, twin, tokenizer, texts):
    import engram_probes as ep

    return ep.cka(
        engram, twin, tokenizer, texts, k=2, per_document=4, batch_size=4, permutations=20
    )


@pytest.fixture(scope="session")
def training_alignment(engram, twin, make_model, tokenizer, texts):
    import engram_probes as ep

    checkpoints = [make_model(streams=4, seed=5), engram]
    return ep.alignment_over_training(
        checkpoints, twin, tokenizer, texts, tokens=[100, 900], k=2, batch_size=4
    )


@pytest.fixture(scope="session")
def questions():
    """Records of two tasks: who counts (four people, some options alike), and what is lost."""
    people = ("harbour master", "miller", "boatman", "smith")
    records = [
        {
            "id": f"q{i}",
            "suite": "who" if i % 2 else "what",
            "entity": people[i % 3],
            "prompt": f"In {1900 + i} the {people[i % 4]} of Varnholm counts",
            "answer": (" boats", " wheels")[i % 5 == 0],
            "options": [" boats", " wheels", " a bridge"][: 2 + i % 2],
        }
        for i in range(20)
    ]
    return records


@pytest.fixture(scope="session")
def suppression(engram, tokenizer, questions):
    import engram_probes as ep

    return ep.suppress(engram, tokenizer, questions, "rows_zero", orders=[3])


@pytest.fixture(scope="session")
def labelled():
    """Documents with spans: a made-up name twice, of tier 0 or 1, and something about it."""
    names = [f"{a}{b}{c}" for a in "BDKLM" for b in "aeiou" for c in ("rn", "st", "lk")]
    return [_labelled(name, i % 2) for i, name in enumerate(names)]


def _labelled(name, tier):
    text = f"At dusk the boats of {name} come home, {name} counts them, a smith."
    places = [(text.index(name), name, "name"), (text.rindex(name), name, "name")]
    places.append((text.index("smith"), "smith", "role"))
    spans = [
        {"start": start, "end": start + len(what), "kind": kind, "entity_id": name, "tier": tier}
        for start, what, kind in places
    ]
    return {"text": text, "spans": spans}


@pytest.fixture(scope="session")
def linear(engram, twin, tokenizer, labelled):
    import engram_probes as ep

    return ep.linear.probe(
        engram, tokenizer, labelled, twin=twin, positions=40, folds=2, depths=(0, 3)
    )


@pytest.fixture(scope="session")
def attribution(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.attribute(engram, tokenizer, texts[1], draws=50)


@pytest.fixture(scope="session")
def patching(engram, tokenizer):
    import engram_probes as ep

    clean, corrupted = (
        f"The harbour master of {town} counts the boats" for town in ("Varnholm", "Ostrava")
    )
    return ep.attribution_patching(engram, tokenizer, clean, corrupted, " boats", " wheel", draws=3)


@pytest.fixture(scope="session")
def routing(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.expert_routing(engram, tokenizer, texts[1], changes=("zero",), permutations=2)


@pytest.fixture(scope="session")
def attention(engram, twin, tokenizer, texts):
    import engram_probes as ep

    small = dict(changes=("zero",), sequences=2, length=8)
    return ep.attention_patterns(engram, tokenizer, texts[1], twin=twin, **small)


@pytest.fixture(scope="session")
def predictions(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.next_tokens(engram, tokenizer, texts[1])


@pytest.fixture(scope="session")
def token_comparison(engram, twin, tokenizer, texts, gates, predictions):
    import engram_probes as ep

    other = ep.next_tokens(twin, tokenizer, texts[1])
    return ep.compare_tokens(predictions, other, (gates, None))


@pytest.fixture(scope="session")
def head_map(engram, tokenizer, texts):
    import engram_probes as ep

    return ep.attention_map(engram, tokenizer, texts[1], draws=2)


@pytest.fixture(scope="session")
def attentions():
    """Function: model, tokenizer, text -> [L, H, query, key] by transformers' eager attention."""
    import torch

    def found(model, tokenizer, text):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        with torch.no_grad():
            patterns = torch.stack(model(ids, output_attentions=True).attentions)[:, 0]
        model.set_attn_implementation(before)
        return patterns.numpy()

    return found
