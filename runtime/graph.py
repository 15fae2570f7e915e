"""A training step as CUDA graphs: where kernels take less time than launching them, launch them all at once.

After PLAIN calls two graphs are captured, and replayed from then on: the forward and backward pass of a micro-batch,
and the optimizer's step. What differs between two replays lies on the device, in memory that does not move: the batch,
learning rates and weight decays, the optimizer's coefficients, counts and the flag that skips a step. A replay draws
dropout masks from the generator's seed as it is when the replay begins. So a run with graphs has the same results, and
the host waits for nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from optim import RuleOptimizer

PLAIN = 3  # calls before the capture: they compile, autotune and take the libraries' workspaces
SHORT = 5e12  # floating-point operations of a micro-batch, 13 ms of an H100 at MFU 39%; longer ones hide launches


def cuda_graph(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """(what replays the kernels of a call of `function`, what it returned: tensors that each replay writes anew)."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            result = function()
    except RuntimeError as error:  # raised by the end of the capture, which hides the reason and leaves its stream set
        torch.cuda.set_stream(stream)
        raise RuntimeError(str(error.__context__ or error)) from error
    return graph.replay, result


class Replayed:
    """A function of tensors, captured after PLAIN calls. The tensors that it returns are written anew by each call.

    Where the optimizer's memory moved (a group or a coefficient was edited) it is captured anew. Where the capture
    fails, a warning says why and the function is called as before.
    """

    def __init__(self, function: Callable[..., Any], optimizer: RuleOptimizer) -> None:
        self.function, self.optimizer, self.calls = function, optimizer, 0
        self.layout_version = optimizer.layout_version
        self.arguments: list[torch.Tensor] = []
        self.replay: Callable[[], None] | None = None

    def __call__(self, *arguments: torch.Tensor) -> Any:
        if self.layout_version != self.optimizer.layout_version:
            self.calls, self.replay, self.layout_version = 0, None, self.optimizer.layout_version
        self.calls += 1
        if self.calls == PLAIN + 1:
            self.arguments = [argument.clone() for argument in arguments]
            try:
                self.replay, self.result = cuda_graph(lambda: self.function(*self.arguments))
            except RuntimeError as error:  # something that CUDA cannot capture
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"the run goes on without CUDA graphs, the capture failed: {reason}", stacklevel=2)
        if self.replay is None:
            return self.function(*arguments)
        for mine, given in zip(self.arguments, arguments, strict=True):
            mine.copy_(given, non_blocking=True)
        self.replay()
        return self.result


class Graphed:
    """A model to train with, whose `backward` (of World in parallel.py) is replayed."""

    def __init__(self, net: Any, optimizer: RuleOptimizer, part: int, world: Any) -> None:
        self.parameters = net.parameters
        self.backward = Replayed(lambda x, y: world.backward(net, x, y, part), optimizer)


def pays(cfg: Any, net: Any, optimizer: Any, world: Any) -> bool:
    """Whether a step becomes graphs with cuda_graph=None: on one GPU, with a rule of ours and a short micro-batch."""
    possible = world.device.type == "cuda" and world.size == 1 and isinstance(optimizer, RuleOptimizer)
    short = possible and net.flops_per_token() * cfg.batch_size * cfg.block_size < SHORT
    return short and not cfg.activation_checkpointing  # uncompiled it reads the generator's state: no capture


def captured(cfg: Any, net: Any, optimizer: Any, world: Any) -> tuple[Any, Callable[[], None]]:
    """(the model to train with, the optimizer's step and zero_grad), as CUDA graphs or as they are."""

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=not isinstance(optimizer, RuleOptimizer))  # a rule's stay views of its buffer

    if not (pays(cfg, net, optimizer, world) if cfg.cuda_graph is None else cfg.cuda_graph):
        return net, step
    replayed = Replayed(step, optimizer)

    def update() -> None:
        optimizer.sync_param_groups()
        replayed()

    return Graphed(net, optimizer, cfg.gradient_accumulation_steps, world), update
