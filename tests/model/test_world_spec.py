import json

import pytest

from engram_model.errors import UsageError
from engram_model.world import VERSION, WorldSpec, export, parse_spec, suites


def test_a_spec_names_every_setting():
    spec = parse_spec("world:?seed=7&tokens=1.5K&split=valid&families=bio,phrase&people=50")
    assert spec == WorldSpec(7, 1500, "valid", ("bio", "phrase"), 50)
    assert parse_spec("world:") == WorldSpec()
    assert spec.fingerprint == f"world{VERSION}-s7-p50-f300-bio-phrase-valid-1500"


def test_a_token_is_four_characters():
    sizes = [len(r["text"]) for r in parse_spec("world:?tokens=5K&people=40").documents()]
    assert sum(sizes) >= 20_000 > sum(sizes[:-1])


def test_a_longer_spec_begins_with_the_shorter():
    short = list(parse_spec("world:?tokens=1K&people=40").documents())
    long = list(parse_spec("world:?tokens=2K&people=40").documents())
    assert long[: len(short)] == short and len(long) > len(short)


@pytest.mark.parametrize(
    ("spec", "say"),
    [
        ("world:?sed=1", "no key 'sed'; its keys are seed, tokens, split, families, people"),
        ("world:?seed=-1", "seed='-1'"),
        ("world:?seed", "seed=''"),
        ("world:?tokens=many", "tokens='many'"),
        ("world:?tokens=0", "tokens='0'"),
        ("world:?split=test", "split 'test' is unknown"),
        ("world:?families=bio,poem", "poem: not known"),
        ("world:?people=3", "3 people are too few"),
    ],
)
def test_a_wrong_spec_gets_one_line(spec, say):
    with pytest.raises(UsageError, match=say) as error:
        parse_spec(spec)
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def test_export_writes_both_splits(tmp_path):
    paths = export("world:?tokens=2K&people=40", tmp_path / "out", valid_tokens=500)
    assert set(paths.values()) == {p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    for split, tokens in (("train", 2000), ("valid", 500)):
        lines = paths[split].read_text(encoding="utf-8").splitlines()
        spec = WorldSpec(tokens=tokens, split=split, people=40)
        assert [json.loads(line) for line in lines] == list(spec.documents())
    for name, items in suites(WorldSpec(people=40).world()).items():
        lines = paths[f"suites/{name}"].read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == items


def test_a_broken_export_leaves_no_half_file(tmp_path, monkeypatch):
    export("world:?tokens=1K&people=40", tmp_path)
    before = (tmp_path / "train.jsonl").read_bytes()

    def fail(spec):
        yield {"id": "only"}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WorldSpec, "documents", fail)
    with pytest.raises(OSError, match="No space left"):
        export("world:?tokens=9K&people=40", tmp_path)
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
