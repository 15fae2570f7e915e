"""Optimizers that can learn their own coefficients. Imports torch alone: copy this folder into any project.

    from optim import MADA
    optimizer = MADA(model.parameters(), lr=1e-3)
"""

from collections.abc import Iterable
from typing import Any

from .adam import Adam, HyperAdam
from .adan import Adan
from .amsgrad import AMSGrad
from .avgrad import AVGrad
from .check import check_hypergradient
from .engine import RuleOptimizer
from .interpolate import interpolate
from .lion import Lion
from .mada import MADA, MADAMax
from .reference import Reference
from .rule import Coefficient, mix, sqrt
from .sgd import SGD
from .yogi import Yogi

OPTIMIZERS: dict[str, type[RuleOptimizer]] = {
    rule.__name__.lower(): rule for rule in (Adam, AMSGrad, AVGrad, Yogi, Adan, Lion, SGD, HyperAdam, MADA, MADAMax)
}


def build_optimizer(name: str, params: Iterable[Any], **options: Any) -> RuleOptimizer:
    """The optimizer called `name` (case ignored). Raises ValueError for another name or an option it does not have."""
    if name.lower() not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is not one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name.lower()](params, **options)


__all__ = [
    "MADA", "OPTIMIZERS", "SGD", "AMSGrad", "AVGrad", "Adam", "Adan", "Coefficient", "HyperAdam", "Lion",
    "MADAMax", "Reference", "RuleOptimizer", "Yogi", "build_optimizer", "check_hypergradient", "interpolate", "mix",
    "sqrt",
]  # fmt: skip
