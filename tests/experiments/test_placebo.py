"""The mixtures of Adam with an optimizer or a placebo."""

import pytest
import torch

from experiments import placebo
from optim import Adam

SMALL = placebo.SETUP | {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "bias": False, "vocab_multiple": 1},
    "block_size": 8, "batch_size": 4, "steps": 40, "warmup": 4, "seeds": {"0.01": 1},
    "hyper_lr": placebo.HYPER_LR,
}  # fmt: skip


def parameters() -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(30, generator=random, dtype=torch.float64))]


def steps(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], n: int = 20) -> None:
    for t in range(n):
        target = torch.randn(30, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        optimizer.zero_grad()
        ((params[0] - target) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("end", placebo.ENDS)
def test_with_all_weight_on_adam_it_is_adam(end: str) -> None:
    ours, theirs = parameters(), parameters()
    rule = placebo.mixture(placebo.ENDS[end])
    steps(rule(ours, 0.02, beta2=0.99, w=1.0, hyper_lr={}, compile=False), ours)
    steps(Adam(theirs, 0.02, beta2=0.99, eps=1e-8, compile=False), theirs)
    assert torch.allclose(ours[0], theirs[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("end", placebo.ENDS)
def test_the_parts_of_h_add_up(end: str) -> None:
    params = parameters()
    learned = {"w": placebo.HYPER_LR, "a": placebo.STILL, "o": placebo.STILL}
    optimizer = placebo.mixture(placebo.ENDS[end])(params, 0.02, beta2=0.99, hyper_lr=learned, compile=False)
    for _ in range(10):
        steps(optimizer, params, 2)
        h = optimizer.hypergradients
        assert h["w"] == pytest.approx(h["a"] - h["o"], rel=1e-9, abs=1e-15)
    assert optimizer.coefficients["a"] < 1e-200 and optimizer.coefficients["w"] != placebo.START


def test_noise_knows_nothing_of_the_gradients_sign() -> None:
    g = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = placebo.noise(g, torch.tensor(7.0))
    assert values.abs().max() <= 1 and values.mean().abs() < 0.02
    others = (placebo.noise(g, torch.tensor(8.0)), placebo.noise(-g, torch.tensor(7.0)))
    for other in (g.sign(), g.abs() / g.abs().mean() - 1, *others):
        assert abs((values * other).mean().item()) < 0.02
    assert values.std() == pytest.approx(1 / 3**0.5, abs=0.01)
    assert placebo.noise(torch.zeros(3), torch.tensor(7.0)).tolist() == [0, 0, 0]


def test_a_run_measures_what_the_report_shows() -> None:
    rows = placebo.compute(SMALL | {"end": "zero"})["rows"]
    alone = placebo.compute(SMALL | {"end": "none"})["rows"]
    columns = rows["0.01"]
    assert all(len(values) == 1 for values in columns.values())
    assert columns["h_o"] == [0.0] and columns["h_w"] == columns["h_a"]  # no step has no part in h
    assert columns["finite_share"] == [1.0]  # a step along Adam is better than none
    assert alone["0.01"]["w"] == [1.0] and "finite" not in alone["0.01"]
    record = {"settings": SMALL | {"end": "zero"}, "rows": rows}
    table = placebo.show("laptop", {"placebo/zero-4": record})[1]
    assert table.rows[0][0] == "no step (placebo)"
