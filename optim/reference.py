"""Algorithm 1 of the paper for any rule, in plain tensors and in either order of its updates; read rule.py before it.
The engine computes the same, faster. Refused here: any hyper_optimizer, hyper_space and scope but "sgd", "linear" and
"global". Ignored here: `half`, and that the engine skips a gradient which is not finite.

An optimizer of this family is a rule with coefficients q (rule.py). Step t, with g_t = grad f_t(x_{t-1}):

    h_t   = < g_t, d x_{t-1} / d q >                     hypergradient; x_{t-1} as a function of the q that produced it,
                                                         the x, state and gradient before it held constant
    for t >= 2 and t > hyper_start (otherwise b_t = b_{t-1} and q_t = q_{t-1}):
    b_t   = mu b_{t-1} + clip(h_t, -hyper_clip, hyper_clip)
    q_t   = clip(q_{t-1} - hyper_lr b_t, low, high)

    d_t, s_t = advance(q, s_{t-1}, min(1, max_grad_norm / (|g_t| + 1e-6)) g_t, t)
    x_t   = (1 - lr_t weight_decay) x_{t-1} - lr_t d_t

where q is q_t with order="coefficients_first", the default, and q_{t-1} with order="weights_first", algorithm 1 as
printed. A learned learning rate multiplies lr_t by its ratio to its start.

Here x_t is the result of that expression, with its graph: the derivative of the next loss by that q is h_{t+1}.
The engine holds no graph: it takes the vjp of `advance` from the state of the step before.
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Reference:
    """Runs a rule on copies of `xs`, with the keywords of that rule's optimizer. `step` takes a learning rate and a
    weight decay for each of them. The t of `advance` counts the gradients that a parameter has seen, this one included.

    x  parameters   q  {name: value} of coefficients and constants   h  {name: hypergradient}   norm  of the gradient
    """

    def __init__(self, rule: Any, xs: Sequence[Tensor], lr: float = 1e-3, **options: Any) -> None:
        self.rule, self.options = rule, rule.check(lr, **options)
        if (self.options.scope, self.options.hyper_optimizer, self.options.hyper_space) != ("global", "sgd", "linear"):
            raise ValueError("the reference has the paper's algorithm alone: scope global, sgd in linear space")
        self.x = [x.detach().clone().requires_grad_() for x in xs]
        self.t = [0] * len(xs)  # gradients seen by each parameter
        kept = [field in self.options.fields for field in rule.State._fields]
        self.state = [rule.State(*(torch.zeros_like(x) if k else None for k in kept)) for x in xs]
        self.q, self.norm = dict(self.options.start), 0.0
        self.h: dict[str, float] = {}
        self.momentum = dict.fromkeys(self.options.learned, 0.0)
        self.steps = 0
        self.applied: list[Tensor] = []  # the learned coefficients that made x, leaves of its graph

    def step(self, loss: Callable[[list[Tensor]], Tensor], lrs: Sequence[float], decays: Sequence[float]) -> None:
        """One step on `loss`, a function of the parameters. One without a gradient stays as it is."""
        grads = torch.autograd.grad(loss(self.x), [*self.x, *self.applied], allow_unused=True)
        gs, hs = grads[: len(self.x)], grads[len(self.x) :]
        self.h = {k: 0.0 if h is None else h.item() for k, h in zip(self.momentum, hs, strict=False)}  # none at step 1
        self.steps += 1
        before = dict(self.q)
        if self.steps > self.options.hyper_start:
            self._learn()

        q = self.q if self.options.order == "coefficients_first" else before
        leaves = {k: torch.tensor(v, dtype=self.x[0].dtype, requires_grad=k in self.momentum) for k, v in q.items()}
        self.applied = [leaves[k] for k in self.momentum]
        self.norm = sum(float((g**2).sum()) for g in gs if g is not None) ** 0.5
        clip = 1.0 if self.options.max_grad_norm is None else min(1.0, self.options.max_grad_norm / (self.norm + 1e-6))
        q_tuple = namedtuple("Q", leaves)(**leaves)  # type: ignore[misc]
        for i, g in enumerate(gs):
            self.x[i] = self.x[i].detach()
            if g is not None:
                self.t[i] += 1
                t = torch.tensor(self.t[i], dtype=g.dtype)
                direction, state = self.rule.advance(q_tuple, self.state[i], clip * g, t)
                if "lr" in leaves:
                    direction = leaves["lr"] / self.options.start["lr"] * direction
                self.x[i] = (1 - lrs[i] * decays[i]) * self.x[i] - lrs[i] * direction
                self.state[i] = self.rule.State(*(None if s is None else s.detach() for s in state))
            self.x[i].requires_grad_()  # for those that are new leaves: no coefficient made them

    def _learn(self) -> None:
        """q by SGD with momentum along -h, projected on the box."""
        for k, h in self.h.items():
            clamped = max(-self.options.hyper_clip, min(self.options.hyper_clip, h))
            self.momentum[k] = self.options.hyper_momentum.get(k, 0.0) * self.momentum[k] + clamped
            box = self.options.table[k]
            self.q[k] = max(box.low, min(box.high, self.q[k] - self.options.hyper_lr[k] * self.momentum[k]))
