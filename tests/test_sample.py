"""Texts from a checkpoint: reproducible, and refused in one line where something is missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import forked

import sample
import train
from data.download import mirrored
from evaluation import perplexity
from model import GPT, GPTConfig
from runtime import checkpoint

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.fixture
def gpt2_run(tmp_path: Path) -> str:
    """A run with GPT-2's tokens whose model draws them all alike: its texts hold characters of many scripts."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=4))
    content = {"config": {"dataset": "is not there"}, "model_config": gpt.config.__dict__, "model": gpt.state_dict()}
    checkpoint.save(tmp_path, 1, None, content, keep=1)
    return f"--out_dir={tmp_path}"


@pytest.mark.skipif(not mirrored("tiktoken_cache"), reason="DATA_MIRROR has no tiktoken_cache")
def test_what_standard_output_cannot_encode_is_escaped(gpt2_run: str) -> None:
    arguments = ["sample.py", gpt2_run, "--max_new_tokens=200", "--top_k=None", "--prompt=Ω", "--device=cpu"]
    for encoding, expected in (("ascii", "\\u03a9"), ("latin-1", "\\u03a9"), ("utf-8", "Ω")):
        (end,) = forked({"argv": arguments, "env": {"PYTHONIOENCODING": encoding}})
        assert (end["code"], end["err"]) == (0, "") and end["out"].startswith(expected)
        assert "\\ufffd" in end["out"] or encoding == "utf-8"


def test_a_tiny_temperature_takes_the_likeliest_token(out_dir: str, capsys) -> None:
    arguments = [out_dir, "--max_new_tokens=30", "--prompt=own "]
    greedy = texts(capsys, *arguments, "--temperature=0")
    assert all(texts(capsys, *arguments, f"--temperature={t}", "--top_k=None") == greedy for t in ("1e-40", "1e-320"))


def test_home_is_expanded(out_dir: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompt.txt").write_text("own ")
    (text,) = texts(capsys, "--out_dir=~/run", "--prompt=file:~/prompt.txt", "--max_new_tokens=3")
    assert text.startswith("own ")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--out_dir=/no/where", "no complete checkpoint in /no/where: check out_dir"),
        ("--temperature=-1", "temperature=-1.0 must be 0 or more"),
        ("--temperature=1e400", "temperature must be a"),
        (f"--seed={2**64}", "seed must be a whole number below 2**63"),
        (f"--prompt=file:{'x' * 300}", "File name too long"),
        ("--prompt=file:/", "not a regular file"),
        ("--top_k=0", "top_k=0 must be 1 or more"),
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
