import gzip
import json
import lzma
import os
import subprocess
import sys

import pytest

from engram_model.corpora import describe, fingerprint, iter_documents, load_corpus
from engram_model.errors import CorpusError, UsageError

ROWS = [{"text": "one", "source": "a/b", "title": "T"}, {"text": "zwei ü", "source": "c"}]
WORLD = "world:?tokens=1K&people=40"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("ENGRAM_ONLINE", raising=False)


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


def texts(spec):
    return [document["text"] for document in iter_documents(spec)]


def refuse(spec, say, kind=CorpusError):
    """Reading `spec` raises one line that holds `say`."""
    with pytest.raises(kind, match=say) as error:
        list(iter_documents(spec))
    assert "\n" not in str(error.value)


def test_json_lines_plain_and_packed(jsonl, tmp_path):
    data = jsonl.read_bytes()
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(data))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    for spec in (f"json:{jsonl}", f"{jsonl}", f"{tmp_path}/a.jsonl.xz", f"json:{tmp_path}/b.*.gz"):
        assert list(iter_documents(spec)) == [ROWS[0], ROWS[1]]


def test_a_pattern_reads_files_in_order_of_name(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    assert texts(f"text:{tmp_path}/*.txt") == ["text a", "text b", "text c"]
    assert next(iter_documents(f"text:{tmp_path}/*.txt"))["source"] == "a.txt"
    assert describe(f"text:{tmp_path}/*.txt")["documents"] == 3


def test_another_field_can_hold_the_text(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "here", "text": 3}')
    assert texts(f"json:{path}#body") == ["here"]


def test_parquet_and_saved_directories(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"body": "one", "n": 1}, {"body": "two", "n": 2}])
    rows.to_parquet(tmp_path / "x.parquet")
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows).save_to_disk(tmp_path / "splits")
    assert texts(f"parquet:{tmp_path}/x.parquet#body") == ["one", "two"]
    assert texts(f"{tmp_path}/x.parquet#body") == ["one", "two"]
    assert texts(f"{tmp_path}/saved#body") == ["one", "two"]
    assert texts(f"dir:{tmp_path}/splits/train#body") == ["one", "two"]
    assert describe(f"dir:{tmp_path}/saved#body")["documents"] == 2
    refuse(f"parquet:{tmp_path}/x.parquet", "no field 'text'; its fields are body, n")
    refuse(f"dir:{tmp_path}/saved", "no field 'text'; its fields are body, n")
    refuse(f"dir:{tmp_path}/splits#body", r"several splits \(train\)")


def test_parts_are_read_one_after_the_other(jsonl):
    mixed = list(iter_documents(f"json:{jsonl} + {WORLD}&split=valid"))
    assert [d["source"] for d in mixed[:3]] == ["a/b", "c", "world"]
    assert mixed[2:] == list(iter_documents(f"{WORLD}&split=valid"))
    assert {"text", "source", "id", "family", "spans", "qa"} == set(mixed[-1])


def test_load_corpus_keeps_the_labels(jsonl):
    dataset = load_corpus(f"json:{jsonl} + {WORLD}&families=reading")
    rows = list(iter_documents(f"json:{jsonl} + {WORLD}&families=reading"))
    assert dataset.column_names == ["text", "id", "family", "source", "title", "spans", "qa"]
    assert dataset["text"][:] == [row["text"] for row in rows]
    assert (dataset[0]["title"], dataset[0]["spans"], dataset[-1]["title"]) == ("T", None, None)
    assert dataset[-1]["spans"] == rows[-1]["spans"] and dataset[-1]["qa"] == rows[-1]["qa"]


def test_a_plain_corpus_has_no_label_columns(jsonl):
    assert load_corpus(str(jsonl)).column_names == ["text", "source", "title"]


def test_streaming_gives_the_same(jsonl):
    spec = f"json:{jsonl} + {WORLD}"
    assert list(load_corpus(spec, streaming=True)) == list(load_corpus(spec))


def test_exported_worlds_read_back_with_their_labels(tmp_path):
    from engram_model.world import export

    path = export(WORLD, tmp_path)["train"]
    records = [dict(d, source="") for d in iter_documents(str(path))]
    assert records == [dict(d, source="") for d in iter_documents(WORLD)]


def test_the_fingerprint_follows_the_content(jsonl):
    before, same = fingerprint(str(jsonl)), fingerprint(str(jsonl))
    jsonl.write_text('{"text": "other"}')
    assert before == same != fingerprint(str(jsonl))
    assert load_corpus(str(jsonl))["text"][:] == ["other"]
    assert load_corpus(WORLD)._fingerprint == fingerprint(WORLD)
    assert "world2-s0-p40-f300-all-train-1000" in fingerprint(WORLD)


def test_describe_names_what_fixes_the_content(jsonl):
    mixed = describe(f"{jsonl} + world:?seed=3")
    file, world = mixed["parts"]
    assert mixed["kind"] == "mixed" and file["kind"] == "json"
    assert file["files"][0]["name"] == "train.jsonl" and len(file["files"][0]["sha256"]) == 64
    assert (world["seed"], world["generator_version"], world["split"]) == (3, 2, "train")
    json.dumps(mixed)


def test_a_missing_path(tmp_path):
    for spec in ("json:{}/no.jsonl", "{}/no.jsonl", "{}/nowhere", "text:{}/*.md", "dir:{}/no"):
        refuse(spec.format(tmp_path), "no such file|no saved dataset")
    with pytest.raises(CorpusError, match="no such file"):
        load_corpus(f"json:{tmp_path}/no.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_an_empty_corpus(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    refuse(f"json:{path}", "is empty")
    for streaming in (False, True):
        with pytest.raises(CorpusError, match="is empty"):
            load_corpus(f"json:{path}", streaming=streaming)


def test_a_missing_field(jsonl):
    refuse(f"json:{jsonl}#body", "line 1: has no field 'body'; its fields are text, source, title")


@pytest.mark.parametrize(
    ("content", "say"),
    [
        (b'{"text": "a"}\n{"text": "\xff"}\n', "x.jsonl: not UTF-8 at byte 24"),
        (b'{"text": "a"}\n{"text": \n', "x.jsonl: line 2: not JSON"),
        (b'["a"]\n', "line 1: not a JSON object"),
        (b'{"text": 3}\n', "line 1: field 'text' is int"),
        (b'{"text": "\\ud800"}\n', "line 1: field 'text' has half a surrogate pair"),
    ],
)
def test_damaged_lines(tmp_path, content, say):
    (tmp_path / "x.jsonl").write_bytes(content)
    refuse(f"json:{tmp_path}/x.jsonl", say)


def test_damage_far_into_a_file_is_reported_by_load_corpus(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 5 + b"{\n")
    with pytest.raises(CorpusError, match="line 6: not JSON") as error:
        load_corpus(str(path))
    assert error.value.exit_code == 3


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "x.txt").write_bytes("caf\u00e9\n".encode() + "caf\u00e9".encode("latin-1"))
    refuse(f"text:{tmp_path}/x.txt", "x.txt: not UTF-8 at byte 9; convert it to UTF-8")


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_a_packed_file_that_breaks_off(tmp_path, suffix):
    pack = {"xz": lzma.compress, "gz": gzip.compress}[suffix]
    path = tmp_path / f"x.jsonl.{suffix}"
    rows = "".join(json.dumps({"text": os.urandom(90).hex()}) + "\n" for _ in range(3000))
    path.write_bytes(pack(rows.encode())[:-9000])
    refuse(str(path), r"x.jsonl.\w+: damaged after line \d+")
    path.write_bytes(b"no archive at all")
    refuse(str(path), "damaged after line 0")


def test_a_broken_parquet_file(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    refuse(f"{tmp_path}/x.parquet", "x.parquet: damaged or no parquet file")


@pytest.mark.parametrize(
    ("spec", "say"),
    [
        ("csv:x.csv", "csv: is no kind of corpus; use one of json, text, parquet"),
        ("world:?speed=1", "no key 'speed'"),
        ("world:? + ", "a corpus is missing"),
        ("", "a corpus is missing"),
        (__file__, "cannot guess its kind"),
    ],
)
def test_a_spec_that_cannot_be_understood(spec, say):
    refuse(spec, say, UsageError)


def test_the_hub_is_asked_only_when_online(monkeypatch):
    refuse("hf:org/name@main#train.text", "needs the network; pass online=True")
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(CorpusError, match="cannot be read from the Hub") as error:
        list(iter_documents("hf:org/name:en@v1#test.body", online=True))
    assert "\n" not in str(error.value)
    assert asked == [(("org/name", "en"), {"split": "test", "revision": "v1", "streaming": True})]


def test_hub_rows_come_out_as_documents(monkeypatch):
    from datasets import Dataset

    rows = Dataset.from_list([{"body": "one"}, {"body": "two"}]).to_iterable_dataset()
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: rows)
    monkeypatch.setenv("ENGRAM_ONLINE", "1")
    assert texts("hf:org/name#train.body") == ["one", "two"]
    refuse("hf:org/name", "no field 'text'; its fields are body")


def test_text_json_and_world_need_no_datasets(jsonl):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('datasets', 'pyarrow', 'transformers')));"
        "from engram_model.corpora import iter_documents;"
        f"print(len(list(iter_documents({f'{jsonl} + {WORLD}'!r}))) > 5)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout == "True\n", out.stderr
