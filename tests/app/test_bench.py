"""`engram bench`: which stages run, what is printed and written, and what a failure does."""

import json

import pytest

from engram_model import bench
from engram_model.bench.measure import Row

HOST_STAGES = ["cpu_hash", "cpu_gather", "cpu_constant_time"]
PROBE_STAGES = ["all_pairs", "lens", "lens_peer", "capture"]


def test_stages_are_listed(engram):
    code, out, err = engram("bench", "--list")
    listed = dict(line.split("\t") for line in out.splitlines())
    assert (code, err) == (0, "") and list(listed) == ["stage", *bench.STAGES, *PROBE_STAGES]
    assert [name for name, needs in listed.items() if needs == "a CPU"] == [
        *HOST_STAGES,
        *PROBE_STAGES,
    ]


def test_host_stages_run_anywhere(engram, tmp_path):
    code, out, err = engram("bench", *HOST_STAGES, "--quick", "--out", tmp_path)
    titles = [line for line in out.splitlines()[1:] if "\t" not in line]
    assert code == 0 and titles == HOST_STAGES
    assert all(f"{name} ..." in err for name in HOST_STAGES)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        f"kernels-{name}.json" for name in HOST_STAGES
    )
    document = json.loads((tmp_path / "kernels-cpu_hash.json").read_text())
    [row] = document["rows"]
    assert document["command"].startswith("engram bench cpu_hash") and document["quick"]
    assert document["error"] is None and "torch" in document["versions"]
    assert {"ours", "NumPy demo"} <= set(row["times"]) and row["goals"][0]["bound"] == 3
    assert "slots equal bit for bit" in row["notes"]


def test_one_json_document(engram, tmp_path):
    code, out, err = engram("bench", "cpu_constant_time", "--quick", "--json", "--out", tmp_path)
    [document] = json.loads(out)
    assert code == 0 and document["stage"] == "cpu_constant_time"
    assert document["rows"][0]["case"].startswith("1,000 rows")
    assert document["machine"]["name"] in err


def test_gpu_stages_are_skipped_on_a_cpu(engram, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = engram("bench", "gate", "--out", tmp_path)
    assert code == 1 and "gate: skipped, needs a GPU" in err  # nothing was measured
    code, _, err = engram("bench", "gate", "cpu_hash", "--quick", "--out", tmp_path)
    assert code == 0 and "gate: skipped" in err


def test_a_stage_that_fails_leaves_the_others(engram, tmp_path, monkeypatch):
    def broken(machine):
        yield Row("cpu_gather", "first", {"ours": 2.0, "other": 3.0}, {"ours": 1.0, "other": 1.0})
        raise RuntimeError("the sides differ\nby much")

    monkeypatch.setattr("engram_model.bench.cpu.cpu_gather", broken)
    code, out, err = engram("bench", "cpu_gather", "cpu_hash", "--quick", "--out", tmp_path)
    assert code == 1
    assert "cpu_gather failed: RuntimeError: the sides differ\n" in err
    assert "first\t2.0\t–\t–\tother 1.50\t–" in out and "\ncpu_hash\n" in out
    document = json.loads((tmp_path / "kernels-cpu_gather.json").read_text())
    assert document["error"] == "RuntimeError: the sides differ" and len(document["rows"]) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [(("nothing",), "no stage 'nothing'; there are hash, "), (("--out", "{file}"), "is a file")],
)
def test_wrong_use(engram, tmp_path, words, line):
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = engram("bench", *(word.format(file=file) for word in words))
    assert code == 2 and line in err and err.count("\n") == 1
