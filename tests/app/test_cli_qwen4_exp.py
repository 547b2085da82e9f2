"""`engram probe` on a folder that holds a `qwen4_exp` model."""

import pytest

import engram_probes as ep

TEXT = "The miller of Ostrava said, nothing is lost."
SPANS = "world:?seed=0&split=valid&tokens=20K"


@pytest.fixture(scope="module")
def folder(make_qwen, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    for name, fields in {"memory": {}, "plain": {"seed": 1, "ple_layer_ids": []}}.items():
        make_qwen(max_position_embeddings=192, **fields).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_gates(engram, folder, tmp_path):
    out = tmp_path / "gates"
    code, _, _ = engram("probe", "gates", folder / "memory", "--text", TEXT, "--out", out)
    assert code == 0 and ep.load_result(out).layers == (0, 2)
    code, _, err = engram("probe", "gates", folder / "plain", "--text", TEXT)
    assert code == 2 and "has no memory" in err


def test_lens_and_cka_with_a_twin(engram, folder, corpus, tmp_path):
    both = (folder / "memory", "--twin", folder / "plain", "--data", corpus)
    assert engram("probe", "lens", *both, "--out", tmp_path / "lens")[0] == 0
    assert engram("probe", "cka", *both, "--k", 2, "--out", tmp_path / "cka")[0] == 0


def test_a_release_of_two_modalities_opens_as_its_language_model(
    engram, folder, make_qwen, tokenizer, tmp_path
):
    from transformers import Qwen4ExpConfig, Qwen4ExpForConditionalGeneration

    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32)
    qwen = make_qwen(max_position_embeddings=192)
    config = Qwen4ExpConfig(text_config=qwen.config.to_dict(), vision_config=vision)
    whole = Qwen4ExpForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(qwen.model.state_dict())
    whole.lm_head.load_state_dict(qwen.lm_head.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    told = [
        engram("probe", "attribute", path, "--text", TEXT, "--draws", 20)
        for path in (tmp_path / "whole", folder / "memory")
    ]
    assert told[0][0] == 0 and "2_engram_order3_head1" in told[0][1]
    first, second = (out.split("remainder")[0] for _, out, _ in told)  # that is rounding
    assert first == second


def test_slots(engram, folder, corpus, tmp_path):
    words = ("probe", "slots", folder / "memory", "--data", corpus, "--index", tmp_path / "index")
    code, out, _ = engram(*words, "--text", TEXT, "--out", tmp_path / "slots")
    assert code == 0 and "dispersion" not in out
    trace = ep.load_result(tmp_path / "slots")
    assert trace.compressed_ids.tolist() == trace.token_ids.tolist()
    assert ep.load_result(tmp_path / "slots" / "load").kind == "row-load"


def test_suppress(engram, folder, tmp_path):
    words = ("probe", "suppress", folder / "memory", "--tasks", "arith", "--items", 3)
    assert engram(*words, "--how", "shuffle", "--out", tmp_path / "out")[0] == 0
    assert ep.load_result(tmp_path / "out").how == "shuffle"


def test_attribute(engram, folder, tmp_path):
    code, out, _ = engram("probe", "attribute", folder / "memory", "--text", TEXT)
    assert code == 0 and "2_engram_order3_head1" in out


def test_linear(engram, folder, tmp_path):
    words = ("probe", "linear", folder / "memory", "--data", SPANS, "--label", "mechanism")
    small = ("--folds", 2, "--positions", 80, "--depths", "0,3", "--documents", 60)
    code, _, err = engram(*words, *small, "--out", tmp_path / "linear")
    assert code == 0, err
