"""A net of five small tensors in two groups and a stream of batches: what the optimizers are tested on."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from optim import Adam, Reference, RuleOptimizer

LRS, DECAYS = (0.02, 0.05), (0.1, 0.3)  # of the two groups
GROUP = (0, 0, 0, 1, 1)  # of each parameter
EMBEDDING, WEIGHT, NEVER, BIAS, SOMETIMES = range(5)
UNSEEN = 5  # row of the embedding whose gradient is always zero


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (4, 5), (3,), (5,), (5,)]
    return [torch.nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64).to(dtype)) for s in shapes]


def groups(params: list[torch.nn.Parameter]) -> list[dict]:
    return [
        {"params": [p for p, g in zip(params, GROUP, strict=True) if g == i], "lr": LRS[i], "weight_decay": DECAYS[i]}
        for i in range(2)
    ]


def loss(params: list[Tensor], t: int, always: bool = False) -> Tensor:
    """Mean squared error of batch t. Parameter NEVER is not used, SOMETIMES (unless `always`) in two steps of three."""
    random = torch.Generator().manual_seed(1000 + t)
    tokens = torch.randint(0, UNSEEN, (16,), generator=random)
    targets = torch.randn(16, 5, generator=random, dtype=torch.float64).to(params[0].dtype)
    y = torch.tanh(params[EMBEDDING][tokens] @ params[WEIGHT] + params[BIAS])
    if always or t % 3 != 2:
        y = y * params[SOMETIMES]
    return ((y - targets) ** 2).sum(1).mean()


def scale(t: int) -> float:
    """Of the learning rates at step t: they change between steps."""
    return 1 / (1 + 0.05 * t)


def set_lr(optimizer: torch.optim.Optimizer, t: int) -> None:
    for group, lr in zip(optimizer.param_groups, LRS, strict=True):
        group["lr"] = lr * scale(t)


def train(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: int, always: bool = False) -> None:
    for t in range(1, steps + 1):
        set_lr(optimizer, t)
        optimizer.zero_grad()
        loss(params, t, always).backward()
        optimizer.step()


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: Iterable[int],
        each: Callable[[int], Any] = lambda t: None, always: bool = True) -> list[Tensor]:  # fmt: skip
    """The parameters after these steps; `each` is called after each of them."""
    for t in steps:
        optimizer.zero_grad()
        loss([*params], t, always).backward()
        optimizer.step()
        each(t)
    return [p.detach() for p in params]


def adam(params: Any) -> Adam:
    return Adam(params, lr=0.02, beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1)


def adamw(params: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, lr=0.02, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)


def train_beside(
    optimizer: RuleOptimizer, params: list[torch.nn.Parameter], reference: Reference, steps: int, always: bool = False
) -> Iterator[int]:
    """Each step t, after the optimizer and the reference took it on the same batch with the same learning rates."""
    for t in range(1, steps + 1):
        set_lr(optimizer, t)
        optimizer.zero_grad()
        loss(params, t, always).backward()
        optimizer.step()
        step_reference(reference, t, always)
        yield t


def step_reference(reference: Reference, t: int, always: bool = False) -> None:
    lrs, decays = [LRS[g] * scale(t) for g in GROUP], [DECAYS[g] for g in GROUP]
    reference.step(lambda xs: loss(xs, t, always), lrs, decays)


def error(got, expected) -> float:
    """Largest difference over the largest value, of two tensors or numbers; of two lists, the worst of them."""
    if isinstance(got, list):
        return torch.tensor([error(a, b) for a, b in zip(got, expected, strict=True)]).max().item()  # NaN stays NaN
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    difference, size = (got - expected).abs().max().item(), expected.abs().max().item()
    return difference / size if size else difference
