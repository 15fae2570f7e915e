"""One thread a process (tests run side by side), and a small prepared corpus for everything that trains."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start

import random
from pathlib import Path

import pytest
import torch

from data import preparation
from data.tokenizer import CharTokenizer

torch.set_num_threads(1)

WORDS = ["the", "adaptive", "optimizer", "learns", "its", "own", "coefficients", "while", "it", "trains", "a", "model"]


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


def small_run(corpus: str, out_dir: Path) -> list[str]:
    """The command line of a run that takes seconds: MADA learning everything, dropout, two micro-batches a step."""
    return [
        f"--dataset={corpus}", f"--out_dir={out_dir}", "--n_layer=2", "--n_head=2", "--n_embd=16",
        "--block_size=16", "--batch_size=4", "--gradient_accumulation_steps=2", "--dropout=0.1", "--max_iters=12",
        "--eval_interval=6", "--eval_iters=10", "--log_interval=3", "--warmup_iters=4", "--learning_rate=1e-2",
        "--min_lr=1e-3", "--optimizer=mada", "--hyper_momentum=0.5", "--device=cpu", "--compile=False",
        "--hyper_lr={'beta1': 1e-2, 'beta2': 1e-2, 'beta3': 1e-2, 'rho': 1e-2, 'c': 1e-2, 'gamma': 1e-2}",
    ]


@pytest.fixture
def small(corpus: str, tmp_path: Path) -> list[str]:
    """That run in tmp_path / "run"."""
    return small_run(corpus, tmp_path / "run")
