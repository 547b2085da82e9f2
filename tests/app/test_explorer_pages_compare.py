"""The page Compare: two models, two texts, and what does not compare."""

import pytest
from explorer_page import figures, texts

FIRST, SECOND = "The miller counts the boats.", "The smith counts the boats."


def test_two_models_are_compared_at_first_sight(explorer):
    at = explorer("compare")
    said = texts(at)
    assert "memory" in said and "nats a token" in said
    assert len(figures(at)) == 2  # tokens, lenses: the twin has no memory
    assert at.session_state["compare_what"] == "models"


def test_two_texts_are_compared_and_kept_in_the_url(explorer):
    at = explorer("compare", text=FIRST, compare_what="Two texts", compare_text=SECOND)
    assert at.text_area(key="compare_text").value == SECOND
    assert len(figures(at)) == 3  # tokens, what the memory adds, its gate
    assert "Here the memory adds" in texts(at)
    assert "first text" in texts(at) and "second text" in texts(at)


def test_a_pair_to_begin_with_is_taken(explorer):
    at = explorer("compare", text=FIRST, compare_what="Two texts", compare_text=SECOND)
    at.button(key="pair_A title completed otherwise").click().run()
    assert not at.exception
    assert at.text_area(key="text").value.endswith("Princess of Wales.")
    assert at.text_area(key="compare_text").value.endswith("Princess of Spain.")


@pytest.mark.parametrize(("first", "second"), [("x", "x"), ("x", "<script>alert(1)</script>")])
def test_one_token_and_markup_are_texts_like_others(explorer, first, second):
    at = explorer("compare", text=first, compare_what="Two texts", compare_text=second)
    assert figures(at) and not at.error


def test_an_empty_text_is_one_line(explorer):
    at = explorer("compare", compare_what="Two texts", compare_text=" ")
    assert len(at.error) == 1 and "empty" in at.error[0].value and not figures(at)


def test_one_model_alone_says_what_to_do(explorer):
    at = explorer("compare", models=("memory",), twin="nothing")
    assert not figures(at) and "Compared with" in at.info[0].value
