"""`engram tune-lens`, and `engram probe lens` through what it saved."""

import json
import shutil

import pytest

import engram_model as em
import engram_probes as ep

FAST = ("--tokens", "300", "--held-out", "60", "--batch", "200")


@pytest.fixture
def bundled(pair, tmp_path, monkeypatch, engram):
    """A copy of the pair, which counts as bundled, to write into."""
    folder = tmp_path / "bundled"
    shutil.copytree(pair, folder)
    monkeypatch.setenv("ENGRAM_CHECKPOINTS", str(folder))
    return folder


@pytest.fixture
def many(tmp_path):
    lines = [f"In {1900 + i} the miller counted {i * 37 % 101} boats at dusk." for i in range(60)]
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return f"json:{file}#text"


def test_tuned_then_looked_through(engram, bundled, many, corpus, tmp_path):
    for name in ("memory", "plain"):
        code, out, err = engram("tune-lens", name, "--data", many, *FAST)
        lens = ep.TunedLens.load(bundled / name)
        lines = out.splitlines()
        assert code == 0 and lines[0] == lens.summary()
        assert lines[1].split("\t")[:3] == ["depth", "kl plain", "kl tuned"] and len(lines) == 6
        assert f"tuning the lens of {name}: 300 tokens" in err
        assert lens.provenance.corpus["source"]["spec"] == many
        assert lens.provenance.command.startswith(f"engram tune-lens {name}")
    model, _ = em.load("memory")  # the folder is still a checkpoint
    assert ep.TunedLens.load(bundled / "memory").belongs_to(model)
    assert engram("info", "memory")[0] == 0

    words = ("probe", "lens", "memory", "--twin", "plain", "--data", corpus, "--tuned")
    code, out, err = engram(*words, "--out", tmp_path / "lens")
    assert code == 0, err
    both = [ep.load_result(tmp_path / "lens" / folder) for folder in ("", "twin")]
    tuned = [ep.TunedLens.load(bundled / name).sha256 for name in ("memory", "plain")]
    assert [one.translators for one in both] == tuned and tuned[0] != tuned[1]
    difference = ep.load_result(tmp_path / "lens/difference")
    assert difference.tuned and out.splitlines()[0] == difference.summary()
    plain, twin = engram("probe", "lens", "memory", "--data", corpus, "--json"), both[0]
    assert json.loads(plain[1])["table"][1]["kl"] != pytest.approx(twin.curve("kl")[0][1])


def test_kept_elsewhere(engram, bundled, many, corpus, tmp_path):
    """Of a checkpoint that cannot be written to; each model finds its own."""
    folders = []
    for name in ("plain", "memory"):
        folders += ["--translators", tmp_path / f"lens-{name}"]
        code, *_ = engram("tune-lens", name, "--data", many, *FAST, "--out", folders[-1])
        assert code == 0 and not (bundled / name / "tuned_lens.json").exists()
    words = ("probe", "lens", "memory", "--data", corpus)
    code, out, err = engram(*words, "--twin", "plain", *folders)
    assert code == 0 and out.startswith("Under the tuned lens"), err
    code, _, err = engram(*words, *folders[:2])
    assert code == 2 and "is that of other weights (plain), not of memory" in err.splitlines()[-1]


def test_wrong_use_is_one_line(engram, bundled, many, corpus, tmp_path):
    def refused(*words):
        code, out, err = engram(*words)
        assert out == "" and "Traceback" not in err
        return code, err.splitlines()[-1]

    look = ("probe", "lens", "memory", "--data", corpus, "--tuned")
    code, line = refused(*look)
    assert code == 3 and "memory: it has no tuned_lens.json; train one with `engram tune" in line
    code, line = refused("tune-lens", "memory", "--data", many, "--out", "/proc/nowhere")
    assert code == 2 and "/proc/nowhere cannot be written to" in line and "--out" in line
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").write_text("mine")
    code, line = refused("tune-lens", "memory", "--data", many, "--out", tmp_path / "full")
    assert code == 2 and "holds no tuned_lens.json" in line
    code, line = refused("tune-lens", "memory", "--data", corpus, "--documents", "3")
    assert code == 3 and "too little text to tune a lens" in line
    engram("tune-lens", "plain", "--data", many, *FAST)
    for file in ("tuned_lens.json", "tuned_lens.safetensors"):
        shutil.copy(bundled / "plain" / file, bundled / "memory" / file)
    code, line = refused(*look)
    assert code == 2 and "this tuned lens is that of other weights (plain)" in line
    (bundled / "memory/tuned_lens.safetensors").write_bytes(b"")
    code, line = refused(*look)
    assert code == 3 and "tuned_lens.safetensors is damaged" in line


def test_documents_are_drawn_from_all(tmp_path):
    from engram_app.opening import sample_documents

    for i in range(100):
        (tmp_path / f"{i:03}.txt").write_text(str(i))
    spec = f"text:{tmp_path}/*.txt"
    drawn = [int(one["text"]) for one in sample_documents(spec, 30, 0)]
    assert len(set(drawn)) == 30 and drawn != sorted(drawn)
    assert min(drawn) < 20 and max(drawn) >= 80
    assert [int(one["text"]) for one in sample_documents(spec, 30, 0)] == drawn
    everything = [int(one["text"]) for one in sample_documents(spec, 1000, 0)]
    assert sorted(everything) == list(range(100)) != everything
