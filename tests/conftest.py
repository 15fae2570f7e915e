"""One thread a process (tests run side by side), and a small prepared corpus for everything that trains."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import forked_call, small_run

from data import preparation
from data.tokenizer import CharTokenizer
from runtime import figure
from study import runner

torch.set_num_threads(1)

WORDS = ["the", "adaptive", "optimizer", "learns", "its", "own", "coefficients", "while", "it", "trains", "a", "model"]


DRAW = figure.draw


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[None]:
    """Runs that end in this process leave an empty picture: a real one takes a second."""

    def draw(out_dir: Path) -> Path:
        (path := Path(out_dir, "figure.png")).touch()
        return path

    figure.draw = draw  # type: ignore[assignment]
    yield
    figure.draw = DRAW


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw their picture."""
    monkeypatch.setattr(figure, "draw", DRAW)


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of sweeps and experiments are forked, one at a time."""
    monkeypatch.setattr(runner.Runner, "call", forked_call)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a prepared set: 40,000 characters of shuffled words to train on and 4,000 to validate on."""
    shuffled = random.Random(0)
    sizes = {"train": 40_000, "val": 4_000}
    texts = {split: " ".join(shuffled.choices(WORDS, k=size // 3))[:size] for split, size in sizes.items()}
    folder = tmp_path_factory.mktemp("corpus")
    source = preparation.Source(
        name="words",
        tokenizer=CharTokenizer("".join(sorted(set("".join(WORDS) + " \n")))),
        records=lambda start: iter([preparation.Record(split, text) for split, text in texts.items()][start:]),
        origin={"text": "words shuffled by a test"},
    )
    preparation.prepare(source, Path(folder))
    return str(folder)


@pytest.fixture
def small(corpus: str, tmp_path: Path) -> list[str]:
    """That run in tmp_path / "run"."""
    return small_run(corpus, tmp_path / "run")
