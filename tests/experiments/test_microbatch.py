"""Coefficients that follow other gradients than the weights."""

import pytest
import torch

from experiments.microbatch import Twins
from optim import MADA

OPTIONS = {"lr": 0.01, "beta3": 0.3, "rho": 0.5, "max_grad_norm": 1.0, "hyper_momentum": 0.5,
           "hyper_lr": dict.fromkeys(("beta1", "beta2", "beta3", "rho", "c", "gamma"), 0.02)}  # fmt: skip


def problem() -> tuple[list[torch.nn.Parameter], list[list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((40, 30), (5,))  # two rows of the optimizer's matrices, and one
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in shapes]
    gradients = [[torch.randn(p.shape, generator=generator).double() for p in params] for _ in range(30)]
    return params, gradients


def run(share: float) -> Twins:
    params, gradients = problem()
    twins = Twins([{"params": params}], OPTIONS)
    for step in gradients:
        for p, gradient in zip(params, step, strict=True):
            p.grad = gradient
        twins.learn([share * gradient for gradient in step])
        twins.optimizer.step()
    return twins


def test_learning_from_the_same_gradient_is_the_optimizer_itself() -> None:
    params, gradients = problem()
    optimizer = MADA(params, **OPTIONS)
    for step in gradients:
        for p, gradient in zip(params, step, strict=True):
            p.grad = gradient
        optimizer.step()
    twins = run(1.0)
    assert twins.optimizer.coefficients == pytest.approx(optimizer.coefficients, rel=1e-12)
    assert optimizer.coefficients["beta3"] != 0.3
    for p, q in zip(params, twins.optimizer.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def test_a_smaller_gradient_moves_them_less_and_none_not_at_all() -> None:
    moved = {share: abs(run(share).optimizer.coefficients["beta3"] - 0.3) for share in (1.0, 0.1, 0.0)}
    assert moved[1.0] > moved[0.1] > moved[0.0] == 0
