"""What README.md shows works as it stands there."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_optimizer_in_another_project() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    loss = model(torch.randn(16, 8)).square().mean()
    before = model.weight.detach().clone()
    names = {"model": model, "loss": loss}
    exec(CODE[0], names)
    assert not torch.equal(before, model.weight)
    assert list(names["optimizer"].coefficients) == ["beta1", "beta2", "beta3", "rho", "c", "gamma"]


def test_the_rule_of_ones_own_learns_compiled() -> None:
    names: dict = {}
    exec(CODE[1], names)
    torch.manual_seed(0)
    x, target = torch.nn.Parameter(torch.randn(3000)), torch.randn(3000)
    optimizer = names["AdaMomentum"]([x], lr=1e-2, compile=True)
    losses = []
    for _ in range(50):
        optimizer.zero_grad(set_to_none=False)
        loss = (x - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert optimizer._passes and all(p.module is not None for p in optimizer._passes.values()), "it ran uncompiled"
    assert losses[-1] < 0.8 * losses[0]
    start = {name: coefficient.start for name, coefficient in optimizer.table.items()}
    assert all(value != start[name] for name, value in optimizer.coefficients.items())


def test_the_rule_of_ones_own_trains_by_the_command_that_is_shown(corpus: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rule.py").write_text(CODE[1])
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"python train\.py (config\S+ --optimizer=rule\.py\S+ .*)", README)
    (config, *arguments) = command.split()
    small = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2", "--eval_iters=2",
             "--max_iters=3", "--compile=False", "--device=cpu", f"--dataset={corpus}"]  # fmt: skip
    assert train.main([str(ROOT / config), *arguments, *small]) == 0
    with (tmp_path / "out/mine/metrics.csv").open() as file:
        last = [*csv.DictReader(file)][-1]
    assert {"beta", "power", "h_beta", "h_power"} <= last.keys() and float(last["beta"]) != 0.9


def test_the_quickstart_samples_from_what_it_trained(tmp_path: Path) -> None:
    """With a Python that only repeats its arguments, in an environment that counts as installed."""
    shutil.copy(ROOT / "run", tmp_path)
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    for name, text in (("python", 'echo "$@"'), ("pip", "")):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)

    def said(*arguments: str) -> list[str]:
        command = [tmp_path / "run", "quickstart", *arguments]
        environment = os.environ | {"PYTHON": sys.executable}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()

    train, sample = "train.py config/quickstart.py", "sample.py --out_dir="
    assert said() == [train, f"{sample}out/quickstart"]
    assert said("--seed=1", "--out_dir=out/a b") == [f"{train} --seed=1 --out_dir=out/a b", f"{sample}out/a b"]
    assert said("--help") == [f"{train} --help"]


def test_commands_name_files_that_are_there() -> None:
    for path in re.findall(r"(?:python|train\.py) ([\w/]+\.py)", README) + re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).exists(), f"README names {path}"
