"""Every optimizer against one that this repository did not write (AVGrad: against tests/reference.py), for 100 steps.

Two groups of different learning rate and decay, learning rates that change at every step, a parameter that never has a
gradient, a row whose gradient is always zero; float64, so that only round-off may differ.

pytorch_optimizer's variants: its Yogi starts both moments at 1e-6 where table 1 has 0 (`initial_accumulator=0`), its
Adan decays last unless it is told otherwise (`weight_decouple`), its betas in its authors' order.
"""

import pytest
import pytorch_optimizer
import torch
from problem import BIAS, SOMETIMES, error, groups, parameters, step_reference, train
from reference import oracle

from optim import MADA, OPTIMIZERS, SGD, Adam, Adan, AMSGrad, AVGrad, HyperAdam, Lion, MADAMax, Reference, Yogi

STEPS = 100
EXACT = 1e-11  # relative; 100 steps of float64 round-off
EPS = 1e-6

ORACLES = {
    "adam": lambda g: torch.optim.AdamW(g, betas=(0.9, 0.95), eps=EPS),
    "amsgrad": lambda g: torch.optim.AdamW(g, betas=(0.9, 0.95), eps=EPS, amsgrad=True),
    "yogi": lambda g: pytorch_optimizer.Yogi(g, betas=(0.9, 0.95), eps=EPS, initial_accumulator=0.0),
    "adan": lambda g: pytorch_optimizer.Adan(g, betas=(0.98, 0.92, 0.99), eps=EPS, weight_decouple=True),
    "lion": lambda g: pytorch_optimizer.Lion(g, betas=(0.95, 0.98)),
    "sgd": lambda g: torch.optim.SGD(g, momentum=0.9),
}
BETAS = {"beta1": 0.9, "beta2": 0.95, "eps": EPS}
OURS = {
    "adam": [
        lambda g: Adam(g, **BETAS),
        lambda g: HyperAdam(g, **BETAS, hyper_lr={}),
        lambda g: MADA(g, **BETAS, beta3=0.0, rho=1.0, c=1.0, gamma=1.0, hyper_lr={}),
    ],
    "amsgrad": [
        lambda g: AMSGrad(g, **BETAS),
        lambda g: MADAMax(g, **BETAS, beta3=0.0, rho=0.0, c=1.0, gamma=1.0, hyper_lr={}),
    ],
    "avgrad": [
        lambda g: AVGrad(g, **BETAS),
        lambda g: MADA(g, **BETAS, beta3=0.0, rho=0.0, c=1.0, gamma=1.0, hyper_lr={}),
    ],
    "yogi": [
        lambda g: Yogi(g, **BETAS),
        lambda g: MADA(g, **BETAS, beta3=0.0, rho=1.0, c=0.0, gamma=1.0, hyper_lr={}),
    ],
    "adan": [
        lambda g: Adan(g, beta1=0.98, beta2=0.99, beta3=0.92, eps=EPS),
        lambda g: MADA(g, beta1=0.98, beta2=0.99, beta3=0.92, eps=EPS, rho=1.0, c=1.0, gamma=1.0, hyper_lr={}),
    ],
    "lion": [
        lambda g: Lion(g, beta1=0.95, beta2=0.98),
        lambda g: MADA(g, beta1=0.3, beta3=0.5, rho=0.5, c=0.5, gamma=0.0, hyper_lr={}),
    ],
    "sgd": [lambda g: SGD(g, momentum=0.9)],
}  # fmt: skip


def trained(make, no_decay: bool = False) -> list[torch.Tensor]:
    params = parameters()
    layout = groups(params)
    if no_decay:
        layout = [group | {"weight_decay": 0.0} for group in layout]
    train(make(layout), params, STEPS, always=True)
    return [p.detach() for p in params]


def reference(rule: str, q: dict[str, float]) -> list[torch.Tensor]:
    run = Reference(oracle(OPTIMIZERS[rule]), parameters(), lr=1.0, hyper_lr={}, **q)
    for t in range(1, STEPS + 1):
        step_reference(run, t, always=True)
    return [x.detach() for x in run.x]


@pytest.mark.parametrize("name, which", [(name, i) for name in OURS for i in range(len(OURS[name]))])
def test_each_optimizer_is_the_published_one(name: str, which: int) -> None:
    no_decay = name == "sgd"  # torch's SGD has no decoupled decay
    got = trained(OURS[name][which], no_decay)
    expected = trained(ORACLES[name], no_decay) if name in ORACLES else reference(name, BETAS)
    assert error(got, expected) < EXACT
    assert error(expected[BIAS], parameters()[BIAS].detach()) > 0.1  # the run went somewhere


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "sgd"])
def test_the_reference_is_the_published_one_too(name: str) -> None:
    q = {"adan": {"beta1": 0.98, "beta2": 0.99, "beta3": 0.92, "eps": EPS}, "lion": {"beta1": 0.95, "beta2": 0.98}}
    assert error(reference(name, q.get(name, BETAS)), trained(ORACLES[name])) < EXACT


def test_decoupled_decay_of_sgd_is_the_reference_s() -> None:
    assert error(trained(lambda g: SGD(g, momentum=0.9)), reference("sgd", {"momentum": 0.9})) < EXACT


def test_mada_fs_is_mada_with_the_final_coefficients_of_a_run() -> None:
    params = parameters()
    start = {"beta1": 0.9, "beta2": 0.95, "beta3": 0.5, "rho": 0.5, "c": 0.5, "gamma": 0.5}
    learner = MADA(groups(params), **start, hyper_lr=dict.fromkeys(start, 0.05))
    train(learner, params, STEPS)
    final = learner.coefficients
    assert all(final[k] != start[k] for k in start)
    fixed = []

    def make(layout: list[dict]) -> MADA:
        fixed.append(MADA(layout, **final, hyper_lr={}))
        return fixed[0]

    got = trained(make)
    assert error(got, reference("mada", {**final, "eps": EPS})) < EXACT
    assert fixed[0].coefficients == final and fixed[0].hypergradients == {}


def test_bias_correction_counts_the_gradients_of_each_parameter() -> None:
    """As torch.optim does: a parameter that had no gradient in some steps is corrected for those that it had."""
    results = []
    for make in (OURS["adam"][0], ORACLES["adam"]):
        params = parameters()
        train(make(groups(params)), params, STEPS)
        results.append([p.detach() for p in params])
    assert error(*results) < EXACT
    assert error(results[0][SOMETIMES], trained(ORACLES["adam"])[SOMETIMES]) > 0.01
