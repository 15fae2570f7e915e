"""evaluate.py as a command: its numbers against the trainer's, its record, its mistakes, several processes."""

import dataclasses
import importlib
import json
import math
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import forked, ranks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import evaluate
import sample
import train
from data import DataError
from data.manifest import write_json
from data.tokenizer import GPT2Tokenizer
from evaluation import perplexity
from model import GPT, GPTConfig
from runtime import checkpoint
from runtime.parallel import World
from runtime.settings import ConfigError, parse

ROOT = Path(__file__).resolve().parents[1]
ALONE = World(0, 1, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def run(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the corpus of words, validated on its whole validation split."""
    folder = tmp_path_factory.mktemp("run")
    argv = [f"--dataset={corpus}", f"--out_dir={folder}", "--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16",
            "--batch_size=4", "--gradient_accumulation_steps=1", "--max_iters=4", "--eval_interval=2",
            "--warmup_iters=1", "--optimizer=adam", "--device=cpu", "--compile=False"]  # fmt: skip
    train.train(parse(train.Config, argv, train.check, "train.py"), ALONE)
    return folder


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def test_paper_on_the_validation_split_is_the_trainers_loss(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main([f"--out_dir={run}", "--device=cpu", "--which=newest"]) == 0
    newest = checkpoint.newest(run)
    record = json.loads((run / f"ckpt_{newest.step:06d}.evaluation.json").read_text())
    assert record["model"]["sha256"] == newest.sha256 and record["model"]["step"] == 4
    paper, strided = record["rows"]  # the run's own set; lm_eval says nothing about it
    assert (paper["protocol"], strided["protocol"]) == ("paper", "strided")
    assert newest.val_loss and math.log(paper["perplexity"]) == pytest.approx(newest.val_loss, rel=1e-6)
    assert (paper["tokens"], paper["window"], paper["stride"]) == (3999 // 16 * 16, 16, None)
    assert (strided["tokens"], strided["window"], strided["stride"]) == (3999, 16, 8)
    out, err = capsys.readouterr()
    assert f"{paper['perplexity']:.4f}" in out and "words" in out
    assert "lm_eval" in err and "no task for" in err
    assert len(checkpoint.find(run)) == 2  # the record is not taken for a checkpoint


def test_words_are_those_of_the_text(run: Path, corpus: str) -> None:
    text = np.fromfile(Path(corpus) / "val_00000.bin", "<u2").tolist()
    subject = perplexity.open_subject(str(run))
    expected = len(subject.tokenizer.decode(text).split())
    assert {row["words"] for row in rows_of(next(run.glob("*.evaluation.json")))} == {expected}


def test_rows_are_replaced_and_others_kept(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    base = [f"--out_dir={run}", f"--json={path}", "--device=cpu"]
    for extra in (["--protocol=paper"], ["--protocol=strided", "--stride=4"], ["--protocol=strided", "--stride=5"],
                  ["--protocol=paper", "--batch_size=3"]):  # fmt: skip
        assert evaluate.main(base + extra) == 0
    rows = rows_of(path)
    assert [(row["protocol"], row["stride"]) for row in rows] == [("strided", 4), ("strided", 5), ("paper", None)]
    found = json.loads(path.read_text())
    found["model"]["sha256"] = "that of another checkpoint"
    path.write_text(json.dumps(found))
    assert evaluate.main([*base, "--protocol=paper"]) == 0
    assert len(rows_of(path)) == 1


def test_two_processes_change_no_digit(run: Path, tmp_path: Path) -> None:
    arguments = [f"--out_dir={run}", "--device=cpu", "--batch_size=3"]
    assert evaluate.main([*arguments, f"--json={tmp_path / 'one.json'}"]) == 0
    command = ["evaluate.py", *arguments, f"--json={tmp_path / 'two.json'}"]
    (ends,) = forked(ranks(command, command))
    assert [end["code"] for end in ends] == [0, 0], ends
    one, two = rows_of(tmp_path / "one.json"), rows_of(tmp_path / "two.json")
    for row in (*one, *two):
        row.pop("tokens_per_second")
    assert one == two and len(one) == 2


@pytest.fixture
def gpt2_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose tokens are GPT-2's, and texts of Wikitext and LAMBADA by a vocabulary of letters in its place."""

    class Letters(GPT2Tokenizer):
        def encode(self, text: str) -> np.ndarray:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)

    monkeypatch.setattr(perplexity, "GPT2Tokenizer", Letters)
    rows = {"wikitext2": [" = A = \n", "", " a text of words \n"] * 3, "lambada": ["it was a dog ."] * 4}
    monkeypatch.setattr(evaluate, "texts", lambda name, split: iter(rows[name]))
    config = GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=4)
    torch.manual_seed(0)
    content = {"config": {"dataset": "openwebtext"}, "model_config": config.__dict__, "model": GPT(config).state_dict()}
    checkpoint.save(tmp_path, 1, None, content, keep=1)
    return tmp_path


def test_each_protocol_reads_its_own_text(gpt2_run: Path) -> None:
    argv = [f"--out_dir={gpt2_run}", "--dataset=wikitext2,lambada", "--device=cpu"]
    assert evaluate.main(argv) == 0
    rows = {(row["dataset"], row["protocol"]): row for row in rows_of(gpt2_run / "ckpt_000001.evaluation.json")}
    assert len(rows) == 6
    article = len(" = A = \n") + len(" a text of words \n")
    assert rows["wikitext2", "paper"]["tokens"] == (3 * (article + 3) - 1) // 8 * 8  # three rows, three ends
    assert rows["wikitext2", "strided"]["tokens"] == 3 * article + 2 * 8 - 1
    # " = A =\n \n a text of words\n": a space before a line break goes, and so does one after it
    articles = perplexity.wikitext_documents([" = A = \n", "", " a text of words \n"] * 3)
    assert rows["wikitext2", "lm_eval"]["tokens"] == sum(map(len, map(perplexity.detokenized, articles)))
    last = rows["lambada", "lm_eval"]
    assert (last["per"], last["words"], last["tokens"]) == ("last word", 4, 4 * 2)
    assert last["accuracy"] == 0 and rows["lambada", "paper"]["accuracy"] is None
    assert rows["wikitext2", "lm_eval"]["per"] == "word"
    assert rows["lambada", "strided"]["words"] == 20
    for row in rows.values():  # a model that has learned nothing
        assert row["nats"] / row["tokens"] == pytest.approx(math.log(50257), abs=0.05)
    per_word = rows["wikitext2", "lm_eval"]
    assert per_word["perplexity"] == pytest.approx(math.exp(per_word["nats"] / per_word["words"]))


def test_an_interruption_loses_one_row(gpt2_run: Path, monkeypatch, capsys) -> None:
    def measure(job, *rest):
        if (job.protocol, job.dataset) == ("lm_eval", "wikitext2"):
            raise KeyboardInterrupt
        return measured(job, *rest)

    measured = evaluate.measure
    monkeypatch.setattr(evaluate, "measure", measure)
    assert evaluate.main([f"--out_dir={gpt2_run}", "--device=cpu", "--dataset=wikitext2,lambada"]) == 130
    rows = rows_of(gpt2_run / "ckpt_000001.evaluation.json")
    assert [(row["dataset"], row["protocol"]) for row in rows] == [("wikitext2", "paper"), ("wikitext2", "strided")]
    monkeypatch.setattr(evaluate, "measure", measured)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert evaluate.main([f"--out_dir={gpt2_run}", "--device=cpu", "--dataset=lambada"]) == 2
    err = capsys.readouterr().err
    assert "ckpt_000001.evaluation.json cannot be written (No space left on device): name another file" in err


def test_the_harness_refuses_a_model_of_characters(run: Path, monkeypatch) -> None:
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.registry", "lm_eval.models", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # so that it need not be installed
    monkeypatch.setattr(sys.modules["lm_eval.models.huggingface"], "HFLM", object, raising=False)
    monkeypatch.setattr(sys.modules["lm_eval.api.registry"], "register_model", lambda _: lambda cls: cls, raising=False)
    monkeypatch.delitem(sys.modules, "evaluation.harness", raising=False)
    adapter = importlib.import_module("evaluation.harness").NanoMADA
    monkeypatch.delitem(sys.modules, "evaluation.harness")
    with pytest.raises(DataError, match="has char tokens; the harness's tasks need GPT-2's"):
        adapter(str(run), device="cpu")


def test_missing_data_sets_are_named_and_the_rest_measured(gpt2_run: Path, monkeypatch, capsys) -> None:
    def texts(name: str, split: str):
        if name != "wikitext2":
            raise DataError(f"no network for {name}")
        return iter(["a b c d e f g\n"])

    monkeypatch.setattr(evaluate, "texts", texts)
    assert evaluate.main([f"--out_dir={gpt2_run}", "--device=cpu", "--protocol=paper"]) == 0
    err = capsys.readouterr().err
    assert "left out paper openwebtext: " in err and "left out paper lambada: no network for lambada" in err
    assert evaluate.main([f"--out_dir={gpt2_run}", "--device=cpu", "--protocol=paper", "--dataset=lambada"]) == 2
    assert capsys.readouterr().err == "evaluate.py: no network for lambada\n"


def test_the_plan_is_shown_before_and_each_row_when_it_is_measured(gpt2_run: Path, monkeypatch, capsys) -> None:
    def measure(*arguments):
        shown.append(capsys.readouterr().out)
        return measured(*arguments)

    measured, shown = evaluate.measure, []
    monkeypatch.setattr(evaluate, "measure", measure)
    argv = [f"--out_dir={gpt2_run}", "--dataset=wikitext2", "--protocol=paper,strided", "--device=cpu"]
    assert evaluate.main(argv) == 0
    before, between = shown
    for line in ("to measure: paper wikitext2/test, 96 tokens", "to measure: strided wikitext2/test, 96 tokens"):
        assert re.sub(r"\d+ tokens", "96 tokens", before).count(line) == 1
    assert re.search(r"this takes about \d\d:\d\d", before) and "perplexity" not in before
    assert between.startswith("protocol") and between.splitlines()[1].startswith("paper")
    assert capsys.readouterr().out.startswith("strided")


def test_progress_of_every_row_has_the_time_left(gpt2_run: Path, capsys) -> None:
    assert evaluate.main([f"--out_dir={gpt2_run}", "--dataset=lambada", "--device=cpu"]) == 0
    labels = re.findall(r"(\w+) lambada/test \((\d) of 3, about \d\d:\d\d left in all\)", capsys.readouterr().err)
    assert list(dict.fromkeys(labels)) == [("paper", "1"), ("strided", "2"), ("lm_eval", "3")]


def test_the_estimate_counts_the_matmuls_of_a_forward_pass(gpt2_run: Path) -> None:
    cfg = evaluate.Config(out_dir=str(gpt2_run), dataset="lambada", protocol="strided", window=8)
    subject = perplexity.open_subject(cfg.out_dir)
    (job,), _ = evaluate.plan(cfg, subject)
    x = torch.zeros(len(job.windows.starts), 8, dtype=torch.int64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        subject.model.head(subject.model.hidden(x))
    assert job.flops(subject.model) == pytest.approx(counter.get_total_flops(), rel=0.5)  # the head scores a part
    blocks = dataclasses.replace(cfg, protocol="lm_eval")
    (last_word,), _ = evaluate.plan(blocks, subject)
    assert last_word.flops(subject.model) < job.flops(subject.model)


def test_a_file_of_the_users_is_not_overwritten(run: Path, tmp_path: Path, capsys) -> None:
    notes = tmp_path / "notes.json"
    for content in ('{"rows": "mine"}', "not json", "[]"):
        notes.write_text(content)
        assert evaluate.main([f"--out_dir={run}", "--device=cpu", f"--json={notes}"]) == 2
        assert "notes.json is not a record of evaluate.py: name another file with --json" in capsys.readouterr().err
        assert notes.read_text() == content


def test_home_is_expanded(run: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(run))
    assert evaluate.main(["--out_dir=~", "--json=~/home.json", "--protocol=paper", "--device=cpu"]) == 0
    assert len(rows_of(run / "home.json")) == 1


def test_standard_output_that_is_full_or_closed_loses_no_row(run: Path, tmp_path: Path) -> None:
    command = ["evaluate.py", f"--out_dir={run}", "--device=cpu"]
    forked(*({"argv": [*command, f"--json={tmp_path / out}.json"], "out": out} for out in ("full", "left")))
    assert len(rows_of(tmp_path / "full.json")) == len(rows_of(tmp_path / "left.json")) == 2


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, capsys) -> None:
    gpt = GPT(GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=4))
    with torch.no_grad():
        gpt.lm_head.weight[5, 1] = math.nan
    content = {"config": {"dataset": "openwebtext"}, "model_config": gpt.config.__dict__, "model": gpt.state_dict()}
    checkpoint.save(tmp_path, 1, None, content, keep=1)
    for program in (evaluate, sample):
        assert program.main([f"--out_dir={tmp_path}", "--device=cpu"]) == 2
        error = capsys.readouterr().err
        assert "ckpt_000001.pt holds NaN or infinity in transformer.wte.weight: choose an earlier" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--protocol=strided,peper"], "protocol='peper' must be paper, strided, lm_eval or all"),
        (["--window=0"], "window=0 must be 1 or more"),
        (["--window=17"], "window=17 is more than the model reads at a time, 16 tokens"),
        (["--stride=17"], "stride=17 leaves out text between windows of 16 tokens"),
        (["--window=8", "--stride=9"], "stride=9 leaves out text between windows of 8 tokens"),
        (["--dataset=wikitext2"], "wikitext2 needs GPT-2's tokens, the model has char tokens"),
        (["--dataset=no_such_set"], "no data set 'no_such_set'"),
        (["--split=valid"], "split='valid' must be train, val or test"),
        (["--protocol=paper", "--split=test"], "has no split 'test'"),
        (["--json=/no/such/folder/e.json"], "e.json cannot be written (no such folder, or no permission)"),
        ([f"--json={'x' * 300}"], "cannot be written (File name too long): name another file with --json"),
        (["--weights=no-weights"], "no weights 'no-weights'"),
        (["--out_dir=no_such_run"], "no complete checkpoint in no_such_run"),
    ],
)
def test_mistakes_are_reported_in_one_line(run: Path, argv: list[str], message: str, capsys) -> None:
    assert evaluate.main([f"--out_dir={run}", "--device=cpu", *argv]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]


def test_another_tokenizer_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.zeros(64, dtype="<u2").tofile(tmp_path / "val_00000.bin")
    shard = {"file": "val_00000.bin", "tokens": 64, "sha256": ""}
    write_json(tmp_path / "manifest.json", {
        "format": 1, "name": "zeros", "tokenizer": "gpt2", "vocab_size": 50257, "dtype": "uint16", "source": {},
        "splits": {"val": {"tokens": 64, "documents": 1, "shards": [shard]}}})  # fmt: skip
    assert evaluate.main([f"--out_dir={run}", "--device=cpu", f"--dataset={tmp_path}"]) == 2
    assert "has gpt2 tokens (50257), the model was trained on char tokens" in capsys.readouterr().err


def test_defaults_are_valid_and_help_names_the_protocols(capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main(["--help"]) == 0
    assert "paper, strided, lm_eval" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="unknown key 'protocl', did you mean 'protocol'"):
        parse(evaluate.Config, ["--protocl=paper"], evaluate.check, "evaluate.py")
