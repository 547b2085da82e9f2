"""The alignment page, run without a browser: saved, computed, pair by pair, over training."""

import pytest
from explorer_page import figures, texts

import engram_model as em
import engram_probes as ep
from engram_app.explorer import alignments, saved


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(alignments, "DOCUMENTS", 24)
    monkeypatch.setattr(alignments, "OPTIONS", {"permutations": 5})


@pytest.fixture(scope="module")
def compared(pair):
    """The pair's alignment, and one over training that ends in it."""
    memory, tokenizer = em.load(pair / "memory")
    plain, _ = em.load(pair / "plain")
    told = [f"The miller of Varnholm counts {i} boats. " + "At dusk. " * (i % 3) for i in range(24)]
    options = dict(k=2, per_document=4, batch_size=4)
    one = ep.cka(memory, plain, tokenizer, told, permutations=10, **options)
    steps = ep.alignment_over_training(
        [memory, memory], plain, tokenizer, told, tokens=[1, 2], **options
    )
    return one, steps


@pytest.fixture
def results(compared, tmp_path):
    return [compared[0].save(tmp_path / "pair"), compared[1].save(tmp_path / "steps")]


def test_without_a_twin(explorer):
    at = explorer("alignment", twin="nothing")
    assert "choose one to compare with" in at.info[0].value and not figures(at)


def test_computed_on_request(explorer, small):
    at = explorer("alignment")
    assert "There is no saved alignment of memory and plain" in texts(at) and not figures(at)
    next(b for b in at.button if b.label == "Compute it").click().run()
    matrix, *others = figures(at)
    assert matrix["data"][0]["type"] == "heatmap" and len(others) == 2
    assert "The largest shift" in texts(at)


def test_saved_ones_open_at_once_and_open_no_model(explorer, results, compared):
    explorer()  # the page that every visit begins with opens its model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engram_app.explorer.cached.held", None)
        patch.setattr("engram_app.opening.open_model", None)
        at = explorer("alignment", results=results)
    assert compared[0].summary() in texts(at) and len(figures(at)) == 3


def test_a_pair_of_layers(explorer, results, compared):
    at = explorer("alignment", results=results)
    at.selectbox(key="alignment_a").set_value("2").run()
    at.selectbox(key="alignment_b").set_value("0").run()
    assert compared[0].pair_summary(0, 2) in texts(at)
    assert at.dataframe[0].value.measure.tolist() == list(compared[0].measures)
    at.selectbox(key="alignment_b").set_value("1").run()
    assert compared[0].pair_summary(1, 2) in texts(at)


@pytest.mark.parametrize("measure", ["neighbours", "procrustes", "rsa", "sinks"])
def test_other_measures(explorer, results, measure):
    at = explorer("alignment", results=results)
    before = figures(at)[0]["data"][0]["name"]
    at.button_group(key="alignment_measure").set_value(measure).run()
    assert len(figures(at)) == 3 and not at.error and not at.exception
    assert figures(at)[0]["data"][0]["name"] != before


def test_over_training(explorer, results, compared):
    at = explorer("alignment", results=results)
    at.selectbox(key="alignment_result").set_value("steps").run()
    assert compared[1].summary() in texts(at)
    assert len(figures(at)) == 1
    at.button_group(key="alignment_training").set_value("final").run()
    assert not at.exception


def test_a_damaged_result_is_passed_over(explorer, results, compared, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text("{}")
    at = explorer("alignment", results=[tmp_path / "bad", *results])
    assert compared[0].summary() in texts(at)


def test_results_are_those_of_these_weights(pair, results, monkeypatch):
    from engram_app.explorer.opened import OPENED, Opened
    from engram_app.explorer.state import Looking
    from engram_probes.alignment import Alignment

    monkeypatch.setenv(OPENED, Opened([], list(map(str, results))).to_json())
    ours = Looking(str(pair / "memory"), str(pair / "plain"))
    assert saved.find_saved(Alignment, ours) is not None
    turned = Looking(str(pair / "plain"), str(pair / "memory"))
    assert saved.find_saved(Alignment, turned) is None
    assert saved.find_saved(Alignment, ours, lambda one: False) is None
