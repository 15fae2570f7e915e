"""Texts from a checkpoint: reproducible, and refused in one line where something is missing."""

from pathlib import Path

import numpy as np
import pytest

import sample
import train
from evaluation import perplexity
from model import GPT, GPTConfig
from runtime import checkpoint


@pytest.fixture
def out_dir(small: list[str], tmp_path: Path, capsys) -> str:
    assert train.main([*small, "--max_iters=2"]) == 0
    capsys.readouterr()
    return f"--out_dir={tmp_path / 'run'}"


def texts(capsys, *argv: str) -> list[str]:
    assert sample.main([*argv]) == 0
    return capsys.readouterr().out.split("\n" + "-" * 15 + "\n")[:-1]


def test_the_seed_fixes_the_texts_and_the_prompt_begins_them(out_dir: str, tmp_path: Path, capsys) -> None:
    arguments = [out_dir, "--num_samples=2", "--max_new_tokens=40", "--prompt=own "]
    first = texts(capsys, *arguments)
    assert len(first) == 2 and first[0] != first[1] and all(len(text) == 44 for text in first)
    assert texts(capsys, *arguments) == first != texts(capsys, *arguments, "--seed=2")
    greedy = texts(capsys, *arguments, "--temperature=0")
    assert greedy[0] == greedy[1] == texts(capsys, *arguments, "--top_k=1", "--seed=3")[0]
    (tmp_path / "prompt.txt").write_text("own ")
    assert texts(capsys, *arguments, f"--prompt=file:{tmp_path / 'prompt.txt'}") == first


def test_gpt2s_tokens_need_no_data_set(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(perplexity.GPT2Tokenizer, "encode", lambda self, text: np.arange(len(text)))
    monkeypatch.setattr(perplexity.GPT2Tokenizer, "decode", lambda self, ids: f"{len(ids)} tokens")
    gpt = GPT(GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=4))
    content = {"config": {"dataset": "is not there"}, "model_config": gpt.config.__dict__, "model": gpt.state_dict()}
    checkpoint.save(tmp_path, 1, None, content, keep=1)
    assert texts(capsys, f"--out_dir={tmp_path}", "--max_new_tokens=2", "--prompt=abc") == ["5 tokens"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--out_dir=/no/where", "no complete checkpoint in /no/where: check out_dir"),
        ("--temperature=-1", "temperature=-1.0 must be 0 or more"),
        ("--top_k=0", "top_k=0 must be 1 or more, or None"),
        ("--num_samples=0", "num_samples=0 must be 1 or more"),
        ("--prompt=", "the prompt is empty"),
        ("--prompt=Ω", "Ω"),
        ("--prompt=file:/no/where", "prompt='file:/no/where' cannot be read"),
        ("--promt=a", "unknown key 'promt', did you mean 'prompt'?"),
    ],
)
def test_bad_input_is_refused_in_one_line(out_dir: str, argument: str, message: str, capsys) -> None:
    assert sample.main([out_dir, argument]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("sample.py: ") and message in shown.err
    assert shown.err.count("\n") == 1
