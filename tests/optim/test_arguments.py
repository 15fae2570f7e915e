"""Keywords of the constructor and of a group: checked without a parameter, and a bad one named in one line."""

import pytest
import torch
from problem import groups, parameters, run, train

from optim import MADA, Adam, HyperAdam, build_optimizer

BAD = {
    "lr = -1": lambda p: Adam(p, lr=-1),
    "lr = nan": lambda p: Adam(p, lr=float("nan")),
    "weight_decay = -0.1": lambda p: Adam(p, weight_decay=-0.1),
    "beta1 = 1.5 must lie in [0, 1]": lambda p: Adam(p, beta1=1.5),
    "beta1 = 1.0 must be below 1": lambda p: Adam(p, beta1=1.0),
    "hyper_lr = 'fast' must be a number": lambda p: MADA(p, hyper_lr="fast"),
    "hyper_optimizer = 'rprop' must be one of sgd, sign, adam": lambda p: MADA(p, hyper_optimizer="rprop"),
    "hyper_space = 'cubic' must be one of linear, log": lambda p: MADA(p, hyper_space="cubic"),
    "beta3 = 1.0 must be below 1": lambda p: MADA(p, beta3=1.0, hyper_lr={}),
    "beta2 = 0.999 must lie in [0.501, 0.99] to be learned": lambda p: HyperAdam(p, beta2=0.999),
    "rho = -0.5": lambda p: MADA(p, rho=-0.5),
    "eps = -1e-08": lambda p: Adam(p, eps=-1e-8),
    "'beta4', it has beta1, beta2, eps": lambda p: Adam(p, beta4=0.5),
    "'epsilon', it has beta1, beta2, eps: did you mean eps?": lambda p: Adam(p, epsilon=0.5),
    "'hyper_ls', it has beta1, beta2, eps: did you mean hyper_lr?": lambda p: Adam(p, hyper_ls={}),
    "'betas', it has beta1, beta2, eps: write beta1=..., beta2=...": lambda p: Adam(p, betas=(0.9, 0.95)),
    "'momentum', it has beta1, beta2, eps: the decay": lambda p: Adam(p, momentum=0.9),
    "'foreach', it has beta1, beta2, eps: leave it out": lambda p: Adam(p, foreach=True),
    "beta1 = '0.9' must be a number": lambda p: Adam(p, beta1="0.9"),
    "eps = (1e-06, 1) must be a number": lambda p: Adam(p, eps=(1e-6, 1)),
    "lr = 'fast' must be a number": lambda p: Adam(p, lr="fast"),
    "hyper_lr['beta1'] = None must be a number": lambda p: Adam(p, hyper_lr={"beta1": None}),
    "hyper_momentum['beta1'] = 'x' must be a number": lambda p: HyperAdam(p, hyper_momentum="x"),
    "box['beta1'] = 0.9 must be a pair (low, high)": lambda p: MADA(p, box={"beta1": 0.9}),
    "box['beta2'] = (0.5, 1.0) must be low < high < 1": lambda p: MADA(p, box={"beta2": (0.5, 1.0)}),
    "box: no coefficient 'beta5'": lambda p: MADA(p, box={"beta5": (0, 1)}),
    "'beta3', it has beta1, beta2, lr": lambda p: Adam(p, hyper_lr={"beta3": 0.1}),
    "hyper_lr['rho'] = -0.1": lambda p: MADA(p, hyper_lr={"rho": -0.1}),
    "hyper_momentum['beta1'] = 1.0 must lie in [0, 1)": lambda p: HyperAdam(p, hyper_momentum={"beta1": 1.0}),
    "hyper_momentum: no coefficient 'rho'": lambda p: Adam(p, hyper_momentum={"rho": 0.1}),
    "hyper_start = -1": lambda p: MADA(p, hyper_start=-1),
    "hyper_clip = 0": lambda p: MADA(p, hyper_clip=0.0),
    "hyper_clip = None must be a number": lambda p: MADA(p, hyper_clip=None),
    "max_grad_norm = -1": lambda p: MADA(p, max_grad_norm=-1.0),
    "order = 'sideways' must be one of coefficients_first, weights_first": lambda p: MADA(p, order="sideways"),
    "lr = 0 cannot be learned": lambda p: Adam(p, lr=0.0, hyper_lr={"lr": 1e-3}),
    "param group 0: beta1 = 1.5 must lie in [0, 1]": lambda p: Adam([{"params": p, "beta1": 1.5}]),
    "beta1 is learned and shared by all param groups, but is 0.5 and 0.9 in them: scope='group'": lambda p: MADA(
        [{"params": p[:1], "beta1": 0.5}, {"params": p[1:]}]
    ),
    "group 0: hyper_lr is the same for all groups": lambda p: MADA([{"params": p, "hyper_lr": {"beta1": 0.1}}]),
    "group 0: hyper_lr['beta1'] = -0.1 must be at least 0": lambda p: MADA(
        [{"params": p, "hyper_lr": -0.1}], scope="group"
    ),
    "group 0: hyper_lr: no coefficient 'eps'": lambda p: MADA(
        [{"params": p, "hyper_lr": {"eps": 0.1}}], scope="group"
    ),
    "beta1 = 0.9 must lie in [0.1, 0.5] to be learned": lambda p: MADA(
        [{"params": p, "box": {"beta1": (0.1, 0.5)}}], scope="group"
    ),
    "beta3 = 0.5 needs a state that is not kept, since beta3 is fixed at 0": lambda p: MADA(
        [{"params": p, "beta3": 0.5}], hyper_lr={}
    ),
    "group 0: betas = (0.9, 0.95) is not read: write beta1=..., beta2=...": lambda p: Adam(
        [{"params": p, "betas": (0.9, 0.95)}]
    ),
    "group: lr = -0.5": lambda p: Adam([{"params": p, "lr": -0.5}]),
    "group: weight_decay = -2": lambda p: Adam([{"params": p, "weight_decay": -2}]),
    "torch.int64": lambda p: Adam([torch.arange(3)]),
    "optimizer 'sophia' is not one of adam, ": lambda p: build_optimizer("sophia", p),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_argument_is_named(message: str) -> None:
    with pytest.raises(ValueError) as caught:
        BAD[message](parameters())
    assert message in str(caught.value)


def test_options_are_checked_without_a_parameter() -> None:
    asked = MADA.check(lr=1e-2, beta1=0.8, gamma=0.5, hyper_lr={"beta1": 0.1, "lr": 1e-4})
    assert asked.learned == ("beta1", "lr") and asked.start["beta1"] == 0.8 and asked.start["lr"] == 1e-2
    assert asked.fields == ("m", "v", "l")
    with pytest.raises(ValueError, match=r"^Adam: beta1 = 1\.5 must lie in \[0, 1\]$"):
        Adam.check(beta1=1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"hyper_lr": {}}, {"hyper_lr": {"beta3": 0.1}, "half": ("m", "pending")}])
def test_bytes_of_state_are_counted_without_a_parameter(options: dict, dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.zeros(1024, dtype=dtype))
    held = sum(v.nbytes for v in MADA([p], **options).state[p].values() if v.numel() == 1024)
    assert MADA.check(**options).state_bytes(dtype) * 1024 == held > 0


def test_the_caller_s_dictionaries_are_copied() -> None:
    rates = {"beta1": 0.05}
    optimizer = Adam(parameters(), hyper_lr=rates)
    rates.clear()
    assert optimizer.options.hyper_lr == {"beta1": 0.05}


def test_a_box_of_one_s_own_holds_what_is_learned() -> None:
    """beta2 = 0.999, everyone's default, lies outside the paper's box."""
    params = parameters()
    optimizer = HyperAdam(params, beta2=0.999, box={"beta2": (0.998, 0.9999)}, hyper_lr={"beta2": 1e3})
    seen = []
    run(optimizer, params, range(1, 12), lambda t: seen.append(optimizer.coefficients["beta2"]))
    assert 0.998 in seen and 0.998 <= min(seen) < max(seen) <= 0.9999


def test_hyperadam_is_adam_learning_its_betas() -> None:
    runs = []
    for make in (HyperAdam, lambda g: Adam(g, hyper_lr={"beta1": 1e-4, "beta2": 1e-4})):
        params = parameters()
        optimizer = make(groups(params))
        train(optimizer, params, 10)
        runs.append((params, optimizer))
    (params, one), (others, other) = runs
    assert all(map(torch.equal, params, others)) and one.coefficients == other.coefficients
    assert one.coefficients["beta1"] != 0.9
    one.load_state_dict(other.state_dict())  # the same rule
