"""The optimizer of a run: what config files and command lines say of it, rules and torch optimizers from outside."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from outcomes import ends_equal, rows
from processes import ENV, ROOT, in_processes

import plot
import sample
import train
from model import GPT, GPTConfig
from runtime import checkpoint, optimizers
from runtime.settings import ConfigError, parse

OWN = Path(__file__).with_name("own_rule.py")
SIX = ["beta1", "beta2", "beta3", "rho", "c", "gamma"]


def config(*argv: str) -> train.Config:
    return parse(train.Config, argv, train.check, "train.py")


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(*argv)
    return str(caught.value).splitlines()


def file(folder: Path, text: str, name: str = "config.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# ------------------------------------------------------------------------------------------------------- settings


def test_the_config_holds_every_coefficient_of_the_rule() -> None:
    assert config("--optimizer=sgd").coefficients == {"momentum": 0.9}
    assert config("--optimizer=sgd", "--momentum=0.8").coefficients == {"momentum": 0.8}
    assert config("--optimizer=sgd", "--coefficients.momentum=0.8").coefficients == {"momentum": 0.8}
    assert list(config().coefficients) == [*SIX, "eps"] and list(config().hyper_lr) == SIX
    assert config("--optimizer=adam").hyper_lr == {}
    assert config("--optimizer=hyperadam").hyper_lr == {"beta1": 1e-4, "beta2": 1e-4}
    assert config("--hyper_lr={'rho': 1e-3}").hyper_lr == {"rho": 1e-3}
    assert config("--hyper_lr.rho=1e-3").hyper_lr == config().hyper_lr | {"rho": 1e-3}
    assert config("--hyper_lr={}").hyper_lr == {}
    assert config("--beta1=0.5", "--beta1=None").coefficients["beta1"] == 0.9


def test_files_say_coefficients_by_name_and_later_ones_win(tmp_path: Path) -> None:
    file(tmp_path, 'optimizer = "adam"\nbeta1 = 0.8\nbeta2 = 0.7\n', "base.py")
    child = file(tmp_path, 'base = "base.py"\nbeta2 = 0.6\ncoefficients = {"eps": 1e-3}\n')
    assert config(child).coefficients == {"beta1": 0.8, "beta2": 0.6, "eps": 1e-3}
    assert config(child, "--beta1=0.1").coefficients["beta1"] == 0.1


def test_hyper_rates_written_for_another_optimizer_stay_for_what_this_one_learns(tmp_path: Path, capsys) -> None:
    mada = file(tmp_path, "hyper_lr = {'beta1': 1e-3, 'beta3': 2e-3}\nhyper_momentum = {'beta1': 0.5, 'rho': 0.5}\n")
    assert config(mada, "--optimizer=adam").hyper_lr == {}
    assert "hyper_lr of beta1, beta3; hyper_momentum of beta1, rho" in capsys.readouterr().err
    hyperadam = config(mada, "--optimizer=hyperadam")
    assert hyperadam.hyper_lr == {"beta1": 1e-3, "beta2": 1e-4} and hyperadam.hyper_momentum == {"beta1": 0.5}
    own = config(mada, f"--optimizer={OWN}:AdaMomentum")
    assert own.hyper_lr == {"beta": 1e-2, "power": 1e-2}  # its own
    adam = file(tmp_path, 'optimizer = "adam"\nhyper_lr = {"beta1": 1e-3}\n', "adam.py")
    capsys.readouterr()
    assert config(adam).hyper_lr == {"beta1": 1e-3} and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hyper_momentum=0.5", "--hyper_momentum.rho=0.9"], "--hyper_momentum.rho=0.9: hyper_momentum is 0.5"),
        (["--optimizer=adam", "--beta3=0.5"], "--beta3=0.5: adam has no coefficient 'beta3', it has beta1, beta2, eps"),
        (["--optimizer=sgd", "--momntum=1"], "--momntum=1: unknown key 'momntum', did you mean 'momentum'?"),
        (["--optimizer=sgd", "--coefficients.momntum=1"], "--coefficients.momntum=1: sgd has no coefficient 'momntum', "
                                                         "it has momentum, did you mean 'momentum'?"),
        (["--beta1=high"], "--beta1=high: beta1 must be a number, not 'high'"),
        (["--beta1=2"], "optimizer=mada: MADA: beta1 = 2"),
        (["--hyper_lr=fast"], "--hyper_lr=fast: hyper_lr must be a dict of numbers, not 'fast'"),
        (["--box={'beta2': 0.9}"], "optimizer=mada: MADA: box['beta2'] = 0.9 must be a pair (low, high)"),
        (["--optimizer=madam"], "optimizer='madam' is not one of adam, amsgrad, "),
        (["--optimizer=nowhere.py:Rule"], "optimizer='nowhere.py:Rule': nowhere.py cannot be imported (File"),
        (["--optimizer=no_such_package:Rule"], "optimizer='no_such_package:Rule': no_such_package cannot be imported"),
        (["--optimizer=torch.optim:AdmaW"], "optimizer='torch.optim:AdmaW': torch.optim has no class or function "
                                            "'AdmaW', did you mean 'AdamW'?"),
        ([f"--optimizer={OWN}:nothing"], f"optimizer={OWN}:nothing: it made a str, which is not a torch optimizer "),
        (["--optimizer=torch.optim:AdamW", "--coefficients.bets=1"], "optimizer=torch.optim:AdamW: AdamW.__init__() "),
        (["--optimizer=torch.optim:AdamW", "--hyper_lr.lr=1"], "--hyper_lr.lr=1: torch.optim:AdamW has no learned "),
    ],
)  # fmt: skip
def test_a_mistake_about_the_optimizer_has_one_line(arguments: list[str], message: str) -> None:
    (line,) = mistakes(*arguments)
    assert line.startswith(message)


def test_a_file_for_mada_leaves_the_coefficients_of_others_alone(tmp_path: Path, capsys) -> None:
    """Lion's beta1 is not Adam's, whatever its name; beta1 of Adam is that of MADA."""
    mada = file(tmp_path, "beta1 = 0.8\nbeta2 = 0.9\neps = 1e-7\nhyper_lr = {'beta1': 1e-4, 'lr': 1e-8}\n")
    assert config(mada, "--optimizer=lion").coefficients == {"beta1": 0.95, "beta2": 0.98}
    assert "ignores these settings of the config files: beta1, beta2, eps; hyper_lr of" in capsys.readouterr().err
    adan = config(mada, "--optimizer=adan", "--beta2=0.97").coefficients
    assert adan == {"beta1": 0.98, "beta2": 0.97, "beta3": 0.92, "eps": 1e-7}
    adam = config(mada, "--optimizer=adam")
    assert adam.coefficients == {"beta1": 0.8, "beta2": 0.9, "eps": 1e-7} and adam.hyper_lr == {}


def test_one_rate_for_all_in_a_file_is_nothing_to_a_torch_optimizer(tmp_path: Path, capsys) -> None:
    assert config(file(tmp_path, "hyper_lr = 1e-3\n"), "--optimizer=torch.optim:AdamW").hyper_lr == {}
    assert "ignores these settings of the config files: hyper_lr" in capsys.readouterr().err


def test_none_is_the_default_in_every_dictionary() -> None:
    arguments = ("--hyper_momentum.beta1=None", "--box.beta1=None", "--coefficients.beta1=None")
    cfg = config("--optimizer=adam", "--hyper_lr.beta1=None", *arguments)
    assert (cfg.hyper_momentum, cfg.box, cfg.hyper_lr, cfg.coefficients["beta1"]) == ({}, {}, {}, 0.9)


def test_a_torch_optimizer_is_not_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = mistakes("--optimizer=torch.optim:AdamW", "--parallel=fsdp")
    assert "parallel=fsdp is for a rule of optim/ or your own, not torch.optim:AdamW" in said


@pytest.mark.parametrize("what", ["raise KeyError(3)", "assert False, 'why'"])
def test_a_function_that_fails_says_how(tmp_path: Path, what: str) -> None:
    (line,) = mistakes(f"--optimizer={file(tmp_path, f'def build(groups, lr, weight_decay): {what}')}:build")
    assert line.endswith(":build: KeyError: 3" if "Key" in what else ":build: AssertionError: why")


def test_a_file_that_fails_says_how(tmp_path: Path) -> None:
    (line,) = mistakes(f"--optimizer={file(tmp_path, 'raise KeyError(3)')}:Rule")
    assert line.endswith("config.py cannot be imported (KeyError: 3)")


def test_a_config_file_names_a_rule_beside_it(tmp_path: Path) -> None:
    shutil.copy(OWN, tmp_path / "mine.py")
    cfg = config(file(tmp_path, 'optimizer = "mine.py:AdaMomentum"\npower = 0.25\n'))
    assert cfg.optimizer == f"{tmp_path / 'mine.py'}:AdaMomentum" and cfg.coefficients == {"beta": 0.9, "power": 0.25}


def test_help_shows_the_table_of_each_rule(capsys) -> None:
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "\n  sgd\n    momentum = 0.9, learned within [0, 0.99]: decay of the sum of gradients" in text
    assert "mada learns beta1, beta2, beta3, rho, c, gamma" in text and "file.py:ClassName" in text


# ------------------------------------------------------------------------------------------------ rules from outside


def test_a_rule_in_a_users_file_is_trained_killed_resumed_and_drawn(corpus: str, tmp_path: Path, monkeypatch) -> None:
    shutil.copy(OWN, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    out_dir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    run = [str(ROOT / "config/tiny.py"), f"--dataset={corpus}", "--optimizer=mine.py:AdaMomentum", "--power=0.4",
           "--max_iters=40", "--checkpoint_interval=5", "--init_from=auto", "--warmup_iters=2", "--eval_iters=20",
           "--n_embd=96"]  # fmt: skip  # from 100,000 parameters on the optimizer is compiled
    assert train.main([*run, f"--out_dir={undisturbed}"]) == 0
    with subprocess.Popen([sys.executable, ROOT / "train.py", *run, f"--out_dir={out_dir}"], env=ENV,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:  # fmt: skip
        while not checkpoint.find(out_dir):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert checkpoint.newest(out_dir).step < 40
    assert train.main([*run, f"--out_dir={out_dir}"]) == 0
    ends_equal(out_dir, undisturbed)
    last = rows(out_dir)[-1]
    assert list(last)[7:] == ["beta", "power", "h_beta", "h_power"] and float(last["power"]) != 0.4
    assert plot.main([str(out_dir)]) == 0


def test_a_users_rule_on_two_processes_has_the_same_coefficients_on_both(small: list[str], tmp_path: Path) -> None:
    changes = [f"--optimizer={OWN}:AdaMomentum", "--hyper_lr=None", "--hyper_momentum=0.5"]
    in_processes(tmp_path, (2, [*small, *changes]))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1] and set(ranks[0][0]) == {"beta", "power"}
    assert all(value not in (0.9, 0.5) for value in ranks[0][0].values())


def test_a_run_starts_with_the_coefficients_of_another_of_the_same_rule(small: list[str], tmp_path: Path) -> None:
    rule = [f"--optimizer={OWN}:AdaMomentum", "--hyper_momentum=0.5", "--max_iters=4"]
    assert train.main([*small, *rule, "--hyper_lr=None"]) == 0
    fixed = [*rule, "--hyper_lr={}", f"--coefficients_from={tmp_path / 'run'}", f"--out_dir={tmp_path / 'fixed'}"]
    assert train.main([*small, *fixed]) == 0
    learned, kept = rows(tmp_path / "run")[-1], rows(tmp_path / "fixed")
    for row in kept:
        assert (row["beta"], row["power"]) == (learned["beta"], learned["power"])
    assert len(kept) == 3 and "h_beta" not in kept[0]


def test_a_learned_rate_and_the_schedule_are_two_columns(small: list[str], tmp_path: Path) -> None:
    assert train.main([*small, "--hyper_lr={'lr': 1e-4}", "--hyper_momentum=0.0"]) == 0
    got = rows(tmp_path / "run")
    assert float(got[-1]["lr"]) == pytest.approx(1.3425e-3, rel=1e-4)  # the cosine's at step 12 of 12
    assert float(got[0]["lr_learned"]) == 1e-2 and float(got[-1]["lr_learned"]) != 1e-2 and got[-1]["h_lr"]


@pytest.mark.usefixtures("drawn")
def test_coefficients_of_groups_and_of_tensors_are_recorded_resumed_and_drawn(small: list[str], tmp_path: Path) -> None:
    ends = {}
    for scope, again in (("group", False), ("tensor", False), ("tensor", True)):
        folder = tmp_path / f"{scope}-{again}"
        run = [*small, f"--scope={scope}", f"--out_dir={folder}"]
        if again:  # in two parts
            assert train.main([*run, "--max_iters=6", "--lr_decay_iters=12"]) == 0
            shutil.copytree(folder, damaged := tmp_path / "damaged")
        assert train.main([*run, "--init_from=auto"]) == 0
        ends[scope, again] = rows(folder)[-1]
        assert (folder / "tensors.png").exists() == (scope == "tensor")
    by_group, by_tensor = ends["group", False], ends["tensor", False]
    assert float(by_group["beta1"]) == pytest.approx((float(by_group["beta1[0]"]) + float(by_group["beta1[1]"])) / 2)
    low, middle, high = (float(by_tensor[f"beta1[{part}%]"]) for part in (0, 50, 100))
    assert low <= middle <= high and low < float(by_tensor["beta1"]) < high
    assert all(ends["tensor", True][k] == v for k, v in by_tensor.items() if k != "seconds")
    tensors = [line.split(",") for line in (tmp_path / "tensor-True" / "tensors.csv").read_text().splitlines()]
    assert tensors[0] == ["step", "parameter", *SIX]
    last = {line[1]: float(line[2]) for line in tensors if line[0] == "12"}
    assert len(last) == 15 and "transformer.h.1.attn.c_attn.weight" in last and max(last.values()) == high
    assert len(tensors) == 1 + 15 * 3  # at steps 0, 6 and 12
    (damaged / "tensors.csv").write_text((was := (damaged / "tensors.csv").read_text()).replace(",", ";", 30))
    assert train.main([*small, "--scope=tensor", f"--out_dir={damaged}", "--init_from=auto"]) == 0  # no copy of it
    assert len((damaged / "tensors.csv").read_text().splitlines()) == 1 + 15 * 1
    assert (damaged / "previous-1" / "tensors.csv").read_text().replace(";", ",") == was
    assert optimizers.final_coefficients(str(tmp_path / "group-False"), SIX).keys() == {*SIX}


# -------------------------------------------------------------------------------------------------- torch optimizers


def torch_optimizer(*argv: str) -> tuple[optimizers.TorchOptimizers, GPT]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=4, vocab_size=8, n_layer=2, n_head=1, n_embd=4, bias=False))
    return optimizers.build(config(*argv), model), model


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest_each_at_its_rate() -> None:
    rates = ["--learning_rate=0.02", "--min_lr=0", "--coefficients.adamw_lr=1e-3", "--coefficients.momentum=0.9"]
    optimizer, model = torch_optimizer("--optimizer=torch.optim:Muon", *rates)
    muon, adamw = optimizer.optimizers
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    hidden = {name for name, p in model.named_parameters() if ".h." in name and p.dim() == 2}
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for group in muon.param_groups for p in group["params"]} == hidden and len(hidden) == 8
    rest = [p for group in adamw.param_groups for p in group["params"]]
    assert {names[id(p)] for p in rest} == {*names.values()} - hidden
    assert muon.param_groups[0]["momentum"] == 0.9
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 0.05, 0.05]


def test_a_function_of_the_users_keeps_the_ratio_of_its_rates(small: list[str]) -> None:
    optimizer, _ = torch_optimizer(f"--optimizer={OWN}:build", "--coefficients.head_lr=6e-5")
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, pytest.approx(0.1)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert train.main([*small, "--hyper_lr=None", "--hyper_momentum=0.0", f"--optimizer={OWN}:build"]) == 0


def test_a_resumed_run_has_the_keywords_of_its_own_config() -> None:
    """Which torch's load_state_dict overwrites by the checkpoint's."""
    common = ["--optimizer=torch.optim:Muon", "--min_lr=0", "--coefficients.adamw_lr=1e-3"]
    before, model = torch_optimizer(*common, "--learning_rate=0.02", "--coefficients.adamw_betas=(0.9, 0.95)")
    after, other = torch_optimizer(*common, "--learning_rate=0.01", "--coefficients.adamw_betas=(0.5, 0.95)")
    checkpoint.restore({"model": model.state_dict(), "optimizer": before.state_dict(), "path": "x"}, other, after)
    assert [group["lr_scale"] for group in after.param_groups] == [1.0, 0.1, 0.1]
    assert [group["betas"] for group in after.param_groups[1:]] == [(0.5, 0.95)] * 2


def test_a_torch_optimizer_is_clipped_and_skips_what_is_not_finite() -> None:
    optimizer, model = torch_optimizer("--optimizer=torch.optim:SGD", "--grad_clip=0.5", "--weight_decay=0")
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert optimizer.skipped == 1 and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)])
    assert optimizer.skipped == 0 and moved.norm().item() == pytest.approx(0.5 * 6e-4, rel=1e-4)


def test_the_gradients_of_a_torch_optimizer_are_zeroed_or_forgotten_as_asked() -> None:
    optimizer, model = torch_optimizer("--optimizer=torch.optim:Muon")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("drawn")
def test_a_run_with_a_torch_optimizer_is_the_same_as_with_ours(small: list[str], tmp_path: Path) -> None:
    common = [*small, "--hyper_lr=None", "--hyper_momentum=0.0", "--grad_clip=0.5"]
    ours = ["--optimizer=adam", "--beta2=0.95", "--eps=1e-6", f"--out_dir={tmp_path / 'ours'}"]
    theirs = ["--optimizer=torch.optim:AdamW", "--coefficients.betas=(0.9, 0.95)", "--coefficients.eps=1e-6",
              f"--out_dir={tmp_path / 'theirs'}"]  # fmt: skip
    for optimizer in (ours, theirs):
        assert train.main([*common, *optimizer]) == 0
    for a, b in zip(rows(tmp_path / "ours"), rows(tmp_path / "theirs"), strict=True):
        assert set(b) == {"step", "tokens", "seconds", "train_loss", "val_loss", "lr", "grad_norm"}
        for name in ("train_loss", "val_loss", "grad_norm"):
            assert bool(a[name]) == bool(b[name])
            if a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-5)
    assert (tmp_path / "theirs" / "figure.png").exists()


def test_schedule_free_weights_are_evaluated_and_saved_but_not_trained() -> None:
    optimizer, model = torch_optimizer("--optimizer=pytorch_optimizer:ScheduleFreeAdamW", "--learning_rate=0.1")
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    trained = model.lm_head.weight.detach().clone()
    with optimizers.evaluating(optimizer):
        assert not torch.allclose(model.lm_head.weight, trained)
    torch.testing.assert_close(model.lm_head.weight.detach(), trained)


# ----------------------------------------------------------------------------------------------- earlier checkpoints


def test_checkpoints_of_an_earlier_version_are_read_but_not_resumed(small: list[str], tmp_path: Path, capsys) -> None:
    assert train.main([*small, "--max_iters=3"]) == 0
    found = checkpoint.newest(tmp_path / "run")
    content = checkpoint.load(found)
    content["format"] = "nanomada-1"
    content["config"] |= {"beta1": 0.9, "max_refused": 20}
    torch.save(content, found.path)
    facts = json.loads(found.path.with_suffix(".json").read_text())
    del facts["check"]  # newer than that
    data = found.path.read_bytes()
    facts |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    found.path.with_suffix(".json").write_text(json.dumps(facts))
    capsys.readouterr()
    assert train.main([*small, "--init_from=resume"]) == 2
    said = capsys.readouterr().err
    assert "was saved by an earlier version" in said and said.count("\n") == 1
    assert sample.main([f"--out_dir={tmp_path / 'run'}", "--prompt=the ", "--max_new_tokens=5"]) == 0
