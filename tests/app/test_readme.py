"""The README is true: its commands run as written, its Python too, its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


LINES = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
ENGRAM = [line for line in LINES if line.startswith("engram ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all commands: later ones use what earlier ones wrote."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("command", ENGRAM, ids=lambda command: " ".join(command.split()[:3]))
def test_command(command, place):
    words = [sys.executable, "-m", "engram_app", *shlex.split(command)[1:]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and result.stdout.strip()


def test_make_targets_exist():
    targets = [line.split()[1] for line in LINES if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["explore", "report", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    assert all(line.startswith(("make ", "engram ")) for line in LINES)


def test_python():
    [code] = blocks("python")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "1_engram_out" in names["labels"]
