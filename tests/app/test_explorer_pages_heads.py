"""Heads and experts, and Attribution: well, empty and in error, without a browser."""

import re

import pytest
from explorer_page import TEXT, figures, texts


def test_heads(explorer):
    at = explorer("heads")
    said = texts(at)
    assert "heads from layer 0 on move" in said and "of their attention" in said
    overview, layer, pattern = figures(at)
    assert [f["data"][0]["type"] for f in (overview, layer, pattern)] == ["heatmap"] * 3
    assert "draws of both controls" in said
    assert at.code[0].value.startswith("engram probe heads") and "--draws 8" in at.code[0].value
    assert "ep.attention_map(model, tokenizer, text, draws=8)" in at.code[1].value
    table = at.dataframe[0].value
    assert table["with the memory"].is_monotonic_decreasing and "difference" in table


def test_another_head_and_what_is_shown_of_it(explorer):
    at = explorer("heads")
    at.button_group(key="layer").set_value("2").run()
    at.button_group(key="heads_head").set_value("1").run()
    at.button_group(key="heads_shown").set_value("without").run()
    assert not at.exception and "Head 1 of layer 2, without the memory" in texts(at)
    at.switch_page("app_pages/gates.py").run()
    assert at.button_group(key="layer").value == "2"  # one selection on all pages
    at.switch_page("app_pages/heads.py").run()
    assert "Head 1 of layer 2, without the memory" in texts(at)


def test_switching_the_head_runs_no_model(explorer, monkeypatch):
    at = explorer("heads")
    ran = []
    monkeypatch.setattr("engram_probes.capture.Subject.run", lambda *_: ran.append(1))
    at.button_group(key="layer").set_value("0").run()
    at.button_group(key="heads_shown").set_value("with").run()
    assert not at.exception and not ran


def test_experts(explorer):
    at = explorer("heads", pos="3")
    at.button_group(key="heads_part").set_value("experts").run()
    assert not at.exception
    said = texts(at)
    assert "A token keeps of its experts" in said and "position 3" in said
    assert len(figures(at)) == 3
    table = at.dataframe[0].value
    assert {"layer", "with the memory", "memory silenced", "kept"} <= set(table.columns)
    assert at.code[0].value.startswith("engram probe routing")
    at.button_group(key="heads_change").set_value("noise").run()
    assert "random vector as large added" in texts(at) and not at.exception


def test_a_model_without_a_memory(explorer):
    at = explorer("heads", models=("plain",))
    assert "has no memory to take away" in at.info[0].value.replace("\\", "")
    assert len(figures(at)) == 2 and "Attention" in str(figures(at)[1])
    at.button_group(key="heads_part").set_value("experts").run()
    assert not at.exception and len(figures(at)) == 1


@pytest.mark.parametrize("page", ["heads", "attribution"])
@pytest.mark.parametrize(
    ("text", "message"), [(" ", "the text is empty"), ("at dusk " * 300, "tokens with <bos>")]
)
def test_no_text_and_too_long_a_text_are_one_line(explorer, page, text, message):
    at = explorer(page, text=text)
    assert message in at.error[0].value.replace("\\", "") and len(at.error) == 1


@pytest.mark.parametrize("page", ["heads", "attribution"])
def test_a_text_of_one_token(explorer, page):
    at = explorer(page, text="a")
    assert not at.error and figures(at)


@pytest.mark.parametrize("page", ["heads", "attribution"])
def test_markup_stays_text(explorer, page):
    at = explorer(page, text="<script>alert(1)</script> **boats**")
    assert not at.error and "<script>" not in str([m.value for m in at.markdown])


def test_attribution(explorer):
    at = explorer("attribution")
    said = texts(at)
    assert said.count("The logit of “") == 1 and "if the memory added nothing" in said
    parts, memory, components = figures(at)
    assert {bar["name"] for bar in parts["data"]} == {"embedding", "attention", "MLPs", "memory"}
    assert len(components["data"]) > len(memory["data"])
    assert [metric.label for metric in at.metric][-1] == "Without the memory"
    assert "rows of its head drawn at random" in said or "conv" in said
    assert (
        at.code[0].value.startswith("engram probe attribute") and "--position" in at.code[0].value
    )


def test_attribution_at_a_position_of_two_tokens(explorer):
    at = explorer("attribution", pos="4")
    target = at.selectbox(key="attribution_target")
    first, second = target.options[1:3]
    target.set_value(first).run()
    at.selectbox(key="attribution_against").set_value(second).run()
    assert not at.error and not at.exception
    assert f"“{first}” less that of “{second}”" in texts(at)
    assert "position=4" in at.code[1].value and "--position 4" in at.code[0].value
    assert at.metric[0].label == "Difference"


def test_attribution_of_a_token_less_itself_is_one_line(explorer):
    at = explorer("attribution", pos="4")
    for key in ("attribution_target", "attribution_against"):
        select = at.selectbox(key=key)
        select.set_value(select.options[1]).run()
    assert "one token; give two different ones" in at.error[0].value and len(at.error) == 1


def test_attribution_by_heads(explorer):
    at = explorer("attribution")
    before = len(at.selectbox(key="attribution_component").options)
    at.toggle(key="attribution_heads").set_value(True).run()
    options = at.selectbox(key="attribution_component").options
    assert len(options) > before and "1_attn_head1" in options
    at.selectbox(key="attribution_component").set_value("1_attn_head1").run()
    assert "1_attn_head1 (attention) adds" in texts(at)
    at.toggle(key="attribution_heads").set_value(False).run()
    assert not at.exception


def test_from_a_component_to_its_page(explorer):
    at = explorer("attribution", pos="4")
    at.selectbox(key="attribution_component").set_value("2_engram_order2_head1").run()
    said = texts(at)
    assert "of layer 2, read for “" in said and "by head 1 of order 2" in said
    ways = {button.label: button for button in at.button}
    ways["This memory in Gates"].click().run()
    assert not at.exception and at.title[0].value == "Gates"
    assert at.button_group(key="layer").value == "2" and "position 4" in texts(at)


def test_from_a_row_to_slots(explorer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    at = explorer("attribution", pos="4")
    at.selectbox(key="attribution_component").set_value("2_engram_order3_head1").run()
    row = re.search(r"Row ([\d,]+) of layer 2", texts(at))[1].replace(",", "")
    {button.label: button for button in at.button}["This row in Slots"].click().run()
    assert not at.exception and at.title[0].value == "Slots"
    assert at.selectbox(key="slots_chosen").value == (2, int(row))


def test_attribution_without_a_memory(explorer):
    at = explorer("attribution", models=("plain",))
    assert len(figures(at)) == 2 and "memory" not in texts(at).split("\n")[0]
    assert [metric.label for metric in at.metric] == ["Logit", "Probability"]
    assert TEXT and not at.error
