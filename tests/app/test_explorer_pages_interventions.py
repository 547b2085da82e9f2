"""The page Interventions, well, empty and in error, run without a browser."""

import pytest
from explorer_page import TEXT, figures, texts


def edits(at):
    """The edits in force, as their buttons say."""
    return [b.label.replace("\\", "") for b in at.button if str(b.key).startswith("edit_")]


def press(at, label):
    return next(b for b in at.button if b.label == label).click().run()


def test_begins_without_the_memory(explorer):
    at = explorer("interventions")
    assert edits(at) == ["zero"] and "Without the memory" in texts(at)
    bars, following = figures(at)
    assert {"edited", "as large, random, 95%"} <= {trace["name"] for trace in bars["data"]}
    assert [trace["name"] for trace in following["data"]] == ["intact", "edited"]
    assert "engram probe intervene" in at.code[0].value and "--edit zero" in at.code[0].value
    assert "ep.intervene(model, tokenizer, text, ['zero']" in at.code[1].value


def test_edits_are_built_taken_back_and_undone(explorer):
    at = explorer("interventions", pos="4")
    at.button_group(key="how").set_value("rows_zero").run()
    at.selectbox(key="edit_order").select("2").run()
    press(at, "Add this edit")
    assert edits(at) == ["rows_zero@order=2,pos=4"]
    at.button_group(key="how").set_value("gate").run()
    at.text_input(key="value_gate").set_value("0.9").run()
    at.selectbox(key="edit_where").select("all").run()
    press(at, "Add this edit")
    assert edits(at) == ["rows_zero@order=2,pos=4", "gate=0.9"]
    at.button(key="edit_0").click().run()
    assert edits(at) == ["gate=0.9"]
    press(at, "Undo")
    assert edits(at) == ["rows_zero@order=2,pos=4", "gate=0.9"]
    press(at, "Undo")
    press(at, "Undo")
    assert edits(at) == ["zero"] and not at.exception


def test_edits_of_the_url(explorer):
    at = explorer("interventions", edit=["swap=the boats@pos=3", "scale=2"])
    assert edits(at) == ["swap=the boats@pos=3", "scale=2"]
    assert "With swap=the boats@pos=3, scale=2" in texts(at)


def test_no_edit_changes_nothing(explorer):
    at = explorer("interventions", edit="")
    assert edits(at) == [] and "no prediction changes" in texts(at)


def test_a_wrong_value_is_one_line_and_adds_nothing(explorer):
    at = explorer("interventions")
    at.button_group(key="how").set_value("gate").run()
    at.text_input(key="value_gate").set_value("wide").run()
    press(at, "Add this edit")
    assert "'wide' is none" in at.error[0].value.replace("\\", "") and edits(at) == ["zero"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [("explode", "no edit 'explode'"), ("zero@layer=9", "layer 9"), ("zero@pos=400", "400")],
)
def test_a_wrong_edit_of_the_url_is_one_line_and_can_be_taken_back(explorer, edit, said):
    at = explorer("interventions", edit=edit)
    [error] = [e.value.replace("\\", "") for e in at.error]
    assert said in error and "\n" not in error
    at.button(key="edit_0").click().run()
    assert not at.error


def test_generation_side_by_side(explorer):
    at = explorer("interventions")
    at.toggle(key="generate").set_value(True).run()
    assert "How the text goes on" in texts(at)
    assert "As it is" in texts(at) and "Edited" in texts(at)


def test_a_fact_is_written_into_the_rows(explorer):
    at = explorer("interventions", edit="", pos="3", answer=" boats")
    assert "rows at" in texts(at) and "the probability of “ boats” went from" in texts(at)
    assert "edited rows" in texts(at) and not at.error


def test_a_model_without_a_memory_says_so(explorer):
    at = explorer("interventions", models=("plain",))
    assert "has no memory" in at.error[0].value


def test_text_too_long_and_empty(explorer):
    at = explorer("interventions", text="boats " * 200)
    assert "reads 192" in at.error[0].value
    assert "the text is empty" in explorer("interventions", text=" ").error[0].value


def test_position_and_text_are_kept(explorer):
    at = explorer("interventions", pos="3")
    assert "position 3" in texts(at) and at.text_area(key="text").value == TEXT
