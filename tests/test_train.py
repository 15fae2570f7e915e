"""Whole runs of the trainer: on one process and two, resumed, refused, diverged."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from outcomes import ends_equal, rows, same, without_seconds
from processes import in_processes

import export
import sample
import train
from data import open_dataset, train_batch, val_starts
from model import GPT, GPTConfig
from optim import OPTIMIZERS
from runtime import checkpoint, huggingface
from runtime.parallel import World

ROOT = Path(train.__file__).parent
TINY = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2", "--eval_iters=2",
        "--device=cpu", "--compile=False"]  # fmt: skip
RULE = f"{Path(__file__).with_name('own_rule.py')}:AdaMomentum"  # a rule in a file that is no part of the product
ALONE = World(0, 1, torch.device("cpu"), torch.float32)


@pytest.mark.usefixtures("drawn")
def test_a_run_learns_and_leaves_everything_that_it_should(small: list[str], tmp_path: Path, capsys) -> None:
    out_dir = tmp_path / "run"
    assert train.main([*small, "--max_iters=150", "--eval_interval=50", "--log_interval=10", "--dropout=0"]) == 0
    shown = capsys.readouterr().out
    final, entropy = map(float, re.search(r"validation loss ([\d.]+) .* corpus ([\d.]+)", shown).groups())  # type: ignore[union-attr]
    assert final < 0.8 * entropy
    got = rows(out_dir)
    names = ["beta1", "beta2", "beta3", "rho", "c", "gamma"]
    columns = ["step", "tokens", "seconds", "train_loss", "val_loss", "lr", "grad_norm"]
    header = list(got[0])
    assert header[:7] == columns and header[-6:] == [f"h_{name}" for name in names]
    assert [name for name in header[7:-6] if name != "eps"] == names
    assert [int(row["step"]) for row in got] == list(range(0, 151, 10))
    assert [int(row["step"]) for row in got if row["val_loss"]] == [0, 50, 100, 150]
    assert all(row["train_loss"] and row["lr"] and row["grad_norm"] for row in got[1:]) and not got[0]["train_loss"]
    assert int(got[-1]["tokens"]) == 150 * 2 * 4 * 16
    assert all(float(got[1][name]) != float(got[-1][name]) for name in names)  # each coefficient moves
    written = json.loads((out_dir / "config.json").read_text())
    assert set(written["config"]) == {field.name for field in dataclasses.fields(train.Config)}
    assert written["config"]["max_iters"] == 150 and {"commit", "versions"} <= set(written)
    assert (out_dir / "figure.png").stat().st_size > 10_000
    assert [found.step for found in checkpoint.find(out_dir)] == [100, 150]

    assert sample.main([f"--out_dir={out_dir}", "--prompt=the ", "--max_new_tokens=30", "--num_samples=2"]) == 0
    first, second = (text for text in capsys.readouterr().out.split("-" * 15) if text.strip())
    assert first.startswith("the ") and second.strip().startswith("the ") and first.strip() != second.strip()
    assert len(first.removesuffix("\n")) == 34


@pytest.mark.parametrize("optimizer", [
    *OPTIMIZERS, "torch.optim:AdamW", "torch.optim:Muon", "pytorch_optimizer:ScheduleFreeAdamW", RULE])  # fmt: skip
def test_a_resumed_run_is_bitwise_the_undisturbed_one(small: list[str], tmp_path: Path, optimizer: str) -> None:
    changes = [f"--optimizer={optimizer}", "--keep_checkpoints=5"]
    if optimizer != "mada":
        changes += ["--hyper_lr=None", "--hyper_momentum=0.0"]
    undisturbed, resumed = tmp_path / "run", tmp_path / "resumed"
    assert train.main([*small, *changes]) == 0
    resumed.mkdir()
    for name in ("ckpt_000006.pt", "ckpt_000006.json", "metrics.csv"):  # died after step 6, with rows beyond it
        shutil.copy(undisturbed / name, resumed / name)
    assert train.main([*small, *changes, f"--out_dir={resumed}", "--init_from=resume"]) == 0
    assert checkpoint.newest(undisturbed).step == 12
    ends_equal(undisturbed, resumed)


def test_two_processes_are_one(small: list[str], tmp_path: Path) -> None:
    """The same global batch, masks of dropout and mean gradient: equal to round-off, and equal bits on both ranks."""
    changes = ["--gradient_accumulation_steps=4", "--grad_clip=0.5"]
    assert train.main([*small, *changes]) == 0
    (answer,) = in_processes(tmp_path, (2, [*small, *changes, f"--out_dir={tmp_path / 'two'}"]))
    ranks = answer["ranks"]
    assert ranks[0] == ranks[1]
    for one, other in zip(without_seconds(tmp_path / "run"), without_seconds(tmp_path / "two"), strict=True):
        for name in one:
            assert bool(one[name]) == bool(other[name])
            if one[name]:
                assert float(other[name]) == pytest.approx(float(one[name]), rel=2e-5, abs=2e-6), (one["step"], name)


def test_micro_batches_add_up_to_the_gradient_of_the_global_batch(corpus: str) -> None:
    tokens = open_dataset(corpus).train
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=32, n_layer=2, n_head=2, n_embd=8))
    cfg = train.Config(batch_size=3, gradient_accumulation_steps=4, block_size=8, seed=5)
    loss = train.accumulate(model, tokens, 7, cfg, ALONE)
    accumulated = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    x, y = train_batch(tokens, 5, 7, range(12), 8)
    whole = model(x, y)[1]
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    for got, p in zip(accumulated, model.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "eval_iters"), [(4, 10), (7, 10), (64, 0)])
def test_validation_is_the_mean_over_fixed_windows(corpus: str, batch_size: int, eval_iters: int) -> None:
    tokens = open_dataset(corpus).val
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=32, n_layer=1, n_head=2, n_embd=8, dropout=0.5)).train()
    cfg = train.Config(batch_size=batch_size, eval_iters=eval_iters, block_size=8)
    got = train.evaluate(model, tokens, cfg, ALONE)
    assert model.training
    starts = val_starts(tokens, 8, eval_iters or None)
    windows = torch.from_numpy(tokens.windows(starts, 9))
    assert len(windows) == (eval_iters or (len(tokens) - 1) // 8)
    with torch.no_grad():
        assert got == pytest.approx(model.eval()(windows[:, :-1], windows[:, 1:])[1].item(), rel=1e-5)


def test_learning_rate_warms_up_and_then_follows_a_cosine() -> None:
    cfg = train.Config(learning_rate=1.0, min_lr=0.1, warmup_iters=9, max_iters=109)
    rates = [train.learning_rate(step, cfg) for step in range(1, 120)]
    assert rates[:10] == pytest.approx(np.linspace(0.1, 1.0, 10))
    assert rates[59] == pytest.approx(0.55)  # half-way from step 10 to step 110
    assert rates[109:] == [0.1] * 10 and rates[108] > 0.1
    assert all(a > b for a, b in itertools.pairwise(rates[9:110]))
    constant = dataclasses.replace(cfg, decay_lr=False)
    assert {train.learning_rate(step, constant) for step in range(10, 120)} == {1.0}
    short = dataclasses.replace(cfg, lr_decay_iters=5)
    assert train.learning_rate(9, short) < train.learning_rate(10, cfg) and train.learning_rate(10, short) == 0.1


def test_a_run_starts_with_weights_and_goes_on_without_them(
    small: list[str], corpus: str, tmp_path: Path, capsys
) -> None:
    torch.manual_seed(3)
    tokens = open_dataset(corpus).vocab_size
    gpt = GPT(GPTConfig(block_size=32, vocab_size=tokens, n_layer=3, n_head=3, n_embd=12))
    folder = tmp_path / "weights"
    huggingface.save(gpt, folder)
    run = [*small, "--dropout=0", "--keep_checkpoints=9", "--checkpoint_interval=3"]
    assert train.main([*run, f"--init_from={folder}"]) == 0  # in place of the 2 layers of `small`
    said = f"weights of {folder}: 3 layers of 12 features, the first 16 positions, {tokens} tokens in 64 rows\n"
    assert said in capsys.readouterr().out
    windows = open_dataset(corpus).val
    x = torch.from_numpy(windows.windows(val_starts(windows, 16, 10), 17))
    with torch.no_grad():
        assert float(rows(tmp_path / "run")[0]["val_loss"]) == pytest.approx(gpt.eval()(x[:, :-1], x[:, 1:])[1].item())
    written = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (written["weights"], written["n_layer"], written["bias"]) == (str(folder), 3, True)

    undisturbed = without_seconds(tmp_path / "run")
    for found in checkpoint.find(tmp_path / "run")[-2:]:
        found.path.unlink()
    other = [*run, f"--out_dir={tmp_path / 'auto'}", f"--weights={folder}", "--init_from=auto"]
    assert train.main([*other, "--max_iters=6", "--lr_decay_iters=12"]) == 0  # auto starts with them
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text("gone")
    assert train.main(other) == 0  # and goes on without
    assert "resuming after step 6" in capsys.readouterr().out
    assert [row for row in without_seconds(tmp_path / "auto") if row["step"] != "6"] == [
        row for row in undisturbed if row["step"] != "6"]  # fmt: skip
    assert train.main([*run, "--init_from=resume"]) == 0  # without naming them
    assert without_seconds(tmp_path / "run") == undisturbed
    line = refused([*run, "--init_from=resume", "--weights=gpt2-xl"], capsys)
    assert "does not match: weights=gpt2-xl (checkpoint: " in line
    line = refused([*run, "--init_from=gpt2", "--weights=gpt2-xl"], capsys)
    assert line == "init_from='gpt2' and weights='gpt2-xl' name different weights"


def test_runs_and_weights_are_told_apart(small: list[str], corpus: str, tmp_path: Path, capsys) -> None:
    tokens = open_dataset(corpus).vocab_size
    weights, back = tmp_path / "weights", tmp_path / "back"
    huggingface.save(GPT(GPTConfig(block_size=16, vocab_size=tokens, n_layer=1, n_head=1, n_embd=4)), weights)
    assert export.main([f"--folder={weights}", "--from_folder", f"--out_dir={back}", f"--dataset={corpus}"]) == 0
    line = refused([*small, f"--out_dir={back}", "--init_from=auto"], capsys)
    assert line.endswith(f" so it cannot be resumed: start a run in another out_dir with --weights={weights}")
    assert train.main([*small, "--max_iters=1"]) == 0
    line = refused([*small, f"--init_from={tmp_path / 'run'}", f"--out_dir={tmp_path / 'other'}"], capsys)
    assert line.startswith(f"{tmp_path / 'run'} is a run of train.py, not") and "--init_from=resume" in line
    assert not (tmp_path / "other").exists()


def refused(argv: list[str], capsys) -> str:
    """The one message of a run that is refused before it does anything."""
    capsys.readouterr()
    assert train.main(argv) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and shown.err.startswith("train.py: ")
    return shown.err.removeprefix("train.py: ").strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_layers=3"], "--n_layers=3: unknown key 'n_layers', did you mean 'n_layer'?"),
        (["--max_iters=many"], "--max_iters=many: max_iters must be a whole number, not 'many'"),
        (["--n_embd=15"], "n_embd=15 is not divisible by n_head=2"),
        (["--optimizer=madam"], "optimizer='madam' is not one of adam, amsgrad, "),
        (["--dropout=1.0"], "dropout=1.0 must be 0 or more and below 1"),
        (["--min_lr=1"], "min_lr=1.0 is above learning_rate=0.01"),
        (["--eval_interval=0"], "eval_interval=0 must be 1 or more"),
        (["--seed=-1"], "seed=-1 must be 0 or more"),
        (["--hyper_lr.beta4=1e-3"], "beta4"),
        (["--beta1=1.5"], "1.5"),
        (["--device=tpu"], "device='tpu' must be auto, cpu, cuda or cuda:N"),
        (["--block_size=5000"], "block_size 5000 needs 5001 tokens, but words/val has 4000"),
        (["--dataset=openwebtexts"], "no data set 'openwebtexts'"),
        (["--dataset=/no/where"], "/no/where"),
        (["--init_from=resume"], "no complete checkpoint in "),
        (["--init_from=gpt5"], "init_from='gpt5' must be scratch, resume, auto, the path of a ckpt_*.pt or .shards, "),
        (["--init_from=gpt5", "--weights=gpt2"], "init_from='gpt5' must be scratch, resume, auto, the path of"),
        (["--weights=gpt5"], "weights='gpt5' must be gpt2, gpt2-medium, gpt2-large, gpt2-xl or a folder with"),
        (["--coefficients_from=/no/where"], "coefficients_from='/no/where' is neither the out_dir nor the record of a"),
        (["--out_dir=/dev/null/run"], "out_dir='/dev/null/run' cannot be written (Not a directory): choose another"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], message: str, small: list[str], tmp_path: Path, capsys
) -> None:
    line = refused([*small, *arguments], capsys)
    assert message in line and "\n" not in line
    assert not (tmp_path / "run").exists()


def test_another_optimizer_ignores_settings_of_coefficients_that_it_does_not_have(
    corpus: str, tmp_path: Path, capsys
) -> None:
    run = [f"{ROOT}/config/shakespeare_char.py", "--optimizer=adam", "--max_iters=1", *TINY,
           f"--dataset={corpus}", f"--out_dir={tmp_path / 'run'}"]  # fmt: skip
    (tmp_path / "mada.py").write_text(f"base = {str(ROOT / 'config/shakespeare_char.py')!r}\nrho = 0.5\n")
    run[0] = str(tmp_path / "mada.py")
    assert train.main(run) == 0
    six = "beta1, beta2, beta3, rho, c, gamma"
    ignored = f"rho; hyper_lr of {six}; hyper_momentum of {six[:-7]}"
    said = f"train.py: optimizer=adam ignores these settings of the config files: {ignored}\n"
    assert capsys.readouterr().err == said
    written = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert written["coefficients"] == {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    assert written["hyper_lr"] == written["hyper_momentum"] == {}
    line = refused([*run, "--rho=0.5", "--hyper_lr.bta1=0.1"], capsys)
    has = "it has beta1, beta2, eps"
    assert line.splitlines() == [
        f"--rho=0.5: adam has no coefficient 'rho', {has}",
        f"--hyper_lr.bta1=0.1: adam has no coefficient 'bta1', {has}, did you mean 'beta1'?",
    ]


def test_all_mistakes_of_a_command_line_are_reported_together(small: list[str], capsys) -> None:
    lines = refused([*small, "--n_embd=15", "--max_iter=5", "--dropout=2", "--hyper_clip=-1"], capsys).splitlines()
    assert len(lines) == 4


def test_more_processes_than_micro_batches_are_refused(small: list[str], capsys, monkeypatch) -> None:
    place = {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert "is not divisible by the 3 processes" in refused(small, capsys)


def test_a_checkpoint_is_resumed_by_its_own_model_and_optimizer_only(
    small: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.main([*small, "--max_iters=6", "--eval_interval=3"]) == 0
    resume = [*small, "--init_from=resume"]
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    GPT = train.GPT
    monkeypatch.setattr(train, "GPT", lambda config: pytest.fail("a model was made before the refusal"))
    line = refused([*resume, "--n_embd=32", "--bias=True"], capsys)
    assert line.endswith("does not match: n_embd=32 (checkpoint: 16), bias=True (checkpoint: False)")
    assert "optimizer=adam (checkpoint: mada)" in refused([*resume, "--optimizer=adam", "--hyper_lr=None"], capsys)
    assert "is at step 6, beyond max_iters=5" in refused([*resume, "--max_iters=5"], capsys)
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(train, "GPT", GPT)
    assert train.main([*resume, "--max_iters=8", "--learning_rate=0.5"]) == 0
    said = "resuming after step 6, max_iters=8 (was 6), eval_interval=6 (was 3), learning_rate=0.5 (was 0.01), "
    assert said + "so the learning rate of step 7 is 0.251 (was 0.001)\n" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_refused(small: list[str], tmp_path: Path, capsys) -> None:
    assert train.main([*small, "--max_iters=3"]) == 0
    path = checkpoint.newest(tmp_path / "run").path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "ckpt_000003.pt is damaged" in refused([*small, "--init_from=resume"], capsys)


def test_a_run_starts_from_the_coefficients_that_another_ended_with(small: list[str], tmp_path: Path, capsys) -> None:
    assert train.main([*small, f"--out_dir={tmp_path / 'mada'}"]) == 0
    last = rows(tmp_path / "mada")[-1]
    final = {name: float(last[name]) for name in ("beta1", "beta2", "beta3", "rho", "c", "gamma")}
    record = tmp_path / "mada.json"
    record.write_text(json.dumps({"final": final}))
    for source in (tmp_path / "mada", record):
        fixed = [*small, f"--coefficients_from={source}", "--hyper_lr={}", f"--out_dir={tmp_path / 'fixed'}"]
        assert train.main(fixed) == 0
        for row in rows(tmp_path / "fixed"):
            assert {name: float(row[name]) for name in final} == final
    problem = refused([*small, f"--coefficients_from={record}", "--optimizer=adam", "--hyper_lr=None"], capsys)
    assert "a run of another rule: it has the coefficients beta1, beta2, beta3, rho, c, gamma, not beta1, b" in problem
    adam = [*small, f"--out_dir={tmp_path / 'adam'}", "--optimizer=adam", "--hyper_lr=None", "--max_iters=2"]
    assert train.main(adam) == 0
    problem = refused([*small, f"--coefficients_from={tmp_path / 'adam'}"], capsys)
    assert "/adam' is a run of another rule (adam): it has the coefficients beta1, beta2, not beta1, beta2, " in problem
    assert train.main([*small, "--max_iters=2", f"--out_dir={tmp_path / 'half'}"]) == 0
    config = tmp_path / "half" / "config.json"
    config.write_text(config.read_text().replace('"max_iters": 2', '"max_iters": 3'))
    assert "is at step 2 of 3: let it finish" in refused([*small, f"--coefficients_from={config.parent}"], capsys)


def test_a_finished_run_can_be_resumed_and_has_nothing_to_do(small: list[str], tmp_path: Path, capsys) -> None:
    assert train.main([*small, "--max_iters=3"]) == 0
    before = rows(tmp_path / "run")
    assert train.main([*small, "--max_iters=3", "--init_from=resume"]) == 0
    assert rows(tmp_path / "run") == before
    assert f"validation loss {float(before[-1]['val_loss']):.4f}" in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.parametrize("optimizer", [[], ["--optimizer=adam", "--hyper_lr=None"]], ids=["mada", "adam"])
def test_a_run_that_diverges_stops(small: list[str], optimizer: list[str], capsys) -> None:
    changes = ["--grad_clip=0", "--max_skipped=4", "--log_interval=2", "--max_iters=200", *optimizer]
    blow_up = [*small, *changes, "--learning_rate=1e30", "--min_lr=1e30", "--warmup_iters=0", "--eval_interval=1000",
               "--checkpoint_interval=1"]  # fmt: skip
    assert train.main(blow_up) == 3
    said = capsys.readouterr().err
    assert re.match(r"train.py: step \d+: no finite gradient for [4-6] steps; ", said)
    assert re.search(r" the last checkpoint is \S+ckpt_0000\d\d.pt: lower the learning rate", said)


def test_an_interrupted_run_says_how_to_go_on(small: list[str], monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, "accumulate", interrupt)
    assert train.main(small) == 130
    assert "--init_from=auto resumes" in capsys.readouterr().err


def test_a_run_needs_neither_compiler_nor_wandb_nor_datasets(small: list[str], tmp_path: Path) -> None:
    code = """if True:
        import sys
        sys.modules["wandb"] = sys.modules["datasets"] = None  # an import of these fails
        import train
        train.parallel.end(train.main(sys.argv[1:]))
    """
    run = subprocess.run(
        [sys.executable, "-c", code, *small, "--max_iters=3", "--compile"], cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": "no-such"},
        capture_output=True, text=True, timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("torch.compile does not work here, the run continues without it:") == 1
    assert (tmp_path / "run" / "ckpt_000003.pt").exists()


def test_wandb_offline_gets_the_run_for_real(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = subprocess.run(
        [sys.executable, ROOT / "train.py", *small, "--max_iters=3", "--wandb_log"],
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        capture_output=True, text=True, timeout=600,
    )
    assert run.returncode == 0 and "the run continues without it" not in run.stderr, run.stderr
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    data = written.read_bytes()
    assert all(name.encode() in data for name in ("train_loss", "h_beta1", "gradient_accumulation_steps"))


def test_help_explains_every_field(capsys) -> None:
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(train.Config):
        assert re.search(rf"--{field.name}=.*\n        \w.*; ", text), field.name


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda path: path.stem)
def test_each_config_file_is_valid_and_named_after_its_folder(path: Path) -> None:
    cfg = train.parse(train.Config, [str(path)], train.check, "train.py")
    if path.stem not in ("laptop", "tiny", "tiny_words", "gpu"):  # these are scales, laid over the file of a run
        assert cfg.out_dir == f"out/{path.stem}"


def test_bfloat16_matmuls_train_nearly_as_well(small: list[str], tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        assert train.main([*small, f"--dtype={dtype}", f"--out_dir={tmp_path / dtype}"]) == 0
    exact, rounded = (rows(tmp_path / dtype)[-1] for dtype in ("float32", "bfloat16"))
    assert exact["train_loss"] != rounded["train_loss"]
    assert float(rounded["val_loss"]) == pytest.approx(float(exact["val_loss"]), abs=0.02)
    saved = checkpoint.load(checkpoint.newest(tmp_path / "bfloat16"))
    assert {tensor.dtype for tensor in saved["model"].values()} == {torch.float32}


@pytest.mark.long
def test_a_compiled_run_is_the_uncompiled_one(small: list[str], tmp_path: Path) -> None:
    for compiled in ("True", "False"):
        run = [*small, "--dropout=0", "--max_iters=6", f"--compile={compiled}", f"--out_dir={tmp_path / compiled}"]
        assert train.main(run) == 0
    for one, other in zip(without_seconds(tmp_path / "True"), without_seconds(tmp_path / "False"), strict=True):
        for name in one:
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=2e-6), (one["step"], name)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_compiled_run_resumes_bitwise(small: list[str], tmp_path: Path, optimizer: str) -> None:
    run = [*small, "--compile=True", f"--optimizer={optimizer}"] + ["--hyper_lr=None"] * (optimizer != "mada")
    for number in (1, 2):
        out_dir = tmp_path / str(number)
        if number == 2:
            out_dir.mkdir()
            for name in ("ckpt_000006.pt", "ckpt_000006.json", "metrics.csv"):
                shutil.copy(tmp_path / "1" / name, out_dir / name)
        assert train.main([*run, f"--out_dir={out_dir}", "--init_from=auto"]) == 0
    assert without_seconds(tmp_path / "1") == without_seconds(tmp_path / "2")
    ends = [checkpoint.load(checkpoint.newest(tmp_path / name)) for name in ("1", "2")]
    assert same(ends[0]["model"], ends[1]["model"]) and same(ends[0]["optimizer"], ends[1]["optimizer"])
