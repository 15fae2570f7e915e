"""The processes of a run, their devices, DDP and FSDP2, and the precision of matmuls."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn
import cli

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from runtime import memory, signals
from runtime.graph import Graphed
from runtime.settings import ConfigError
from runtime.watchdog import GO_ON, PeerLost, Watchdog, store_of_torchrun

# References to destroyed process groups. If DistributedDataParallel had the last one, the group would be freed while
# holding the GIL, for which the group's thread may be waiting in order to free a tensor: a deadlock.
LEFT: list[Any] = []


@dataclass(frozen=True)
class World:
    """The process group of a run, as seen by one process."""

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype  # of matmuls; weights, reductions and optimizer states are float32
    sharded: bool = False  # by FSDP2
    watchdog: Watchdog | None = None  # if size > 1

    def at(self, step: int | None = None) -> None:
        """Tell the watchdog that this process makes progress, and in which step (None: the same as before)."""
        if self.watchdog:
            self.watchdog.at(step)

    @property
    def card(self) -> str:
        """The name of the GPU, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def explain(self, error: Exception, batch_size: int) -> Exception:
        """A ConfigError with one line if the memory is full, a PeerLost for an error of gloo or NCCL after another
        process died; other errors unchanged."""
        text = str(error)
        if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", text):
            text = text.partition("DefaultCPUAllocator: ")[2] or text.partition(". GPU")[0]
            return ConfigError(f"rank {self.rank} is out of memory ({text}): {memory.advice(batch_size)}")
        if self.size == 1 or not re.search("gloo|NCCL|Connection (closed|reset)", text):
            return error
        reason = text.partition("]")[2].partition(". This is")[0].strip() or text.splitlines()[0]
        step = self.watchdog.step if self.watchdog else 0
        return PeerLost(f"rank {self.rank} lost another process in step {step} ({reason}); {GO_ON}")

    def move(self, x: torch.Tensor) -> torch.Tensor:
        """Copy a batch to the device asynchronously."""
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x

    def sum(self, x: torch.Tensor, asked: bool = False) -> tuple[float, bool]:
        """(the sum of x over all processes, whether any of them passes `asked`), in one all-reduce. Synchronizes."""
        both = torch.stack([x, torch.full_like(x, float(asked))])
        if self.size > 1:
            dist.all_reduce(both)
        total, votes = both.tolist()
        return total, votes > 0

    def agreed(self, asked: bool) -> bool:
        """Whether to stop now: sharded processes, which run every pass together, also stop together."""
        return self.any(asked) if self.sharded else asked

    def any(self, asked: bool) -> bool:
        """Whether any of the processes passes `asked`. Synchronizes."""
        return self.sum(torch.zeros((), device=self.device), asked)[1]

    def first(self, value: Any) -> Any:
        """Rank 0's value, on every process: what each finds on the disk by itself may differ."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def require_same(self, facts: dict[str, Any]) -> None:
        """Raise a ConfigError on every process if any of the facts differs between them; also a barrier."""
        theirs = [facts] * self.size
        if self.size > 1:
            dist.all_gather_object(theirs, facts)
        differ = []
        for name in facts:
            ranks: dict[str, list[str]] = {}
            for rank, one in enumerate(theirs):
                ranks.setdefault(repr(one.get(name)), []).append(str(rank))
            if len(ranks) > 1:
                differ.append(f"{name} is " + ", ".join(f"{it} on rank {', '.join(r)}" for it, r in ranks.items()))
        if differ:
            raise ConfigError(f"the processes differ: {'; '.join(differ)}: give all the same settings and files")

    def parallelize(self, model: Any, compiled: bool) -> Any:
        """Compile and shard the model, in place; the same with gradients averaged over the processes."""
        if compiled:
            model.compile_parts()
        if self.sharded:
            shard(model, self)
        return DistributedDataParallel(model) if self.size > 1 and not self.sharded else model

    def backward(self, net: Any, x: torch.Tensor, y: torch.Tensor, part: int) -> torch.Tensor:
        """Add the gradient of the mean loss over a micro-batch, divided by `part`, to .grad; that loss."""
        if isinstance(net, Graphed):
            return net.backward(x, y)
        with self.autocast():
            loss = net(x, y)[1]
        (loss / part).backward()
        return loss.detach()

    def no_sync(self, net: Any) -> AbstractContextManager[Any]:
        """DDP's no_sync. FSDP2 reduces after every micro-batch, as unsharded gradients would take too much memory."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()


def shard(model: Any, world: World) -> None:
    """Apply FSDP2 to each block and to the rest of the model.

    Parameters and gradient reductions are float32. With bfloat16, the parameters of blocks are gathered and multiplied
    in bfloat16, while embeddings, head and residual stream use autocast: the arithmetic of an unsharded model, except
    that the weights of norms inside blocks are rounded too.
    """
    from torch.distributed.device_mesh import init_device_mesh  # these imports take two seconds
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    low = world.dtype if world.dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


def deterministic(on: bool) -> None:
    """Whether GPUs compute the same bits each time: kernels that add in a fixed order, none chosen by its speed today.

    To be called before CUDA starts. Of attention's backward passes that leaves flash's.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", not on)  # noqa: B010  (a property of the module)
    torch.backends.cudnn.deterministic = on
    torch.backends.cuda.enable_cudnn_sdp(not on)
    torch.backends.cuda.enable_mem_efficient_sdp(not on)


@contextlib.contextmanager
def session(cfg: Any) -> Iterator[World]:
    """The process group of a training run, with the signal handlers of runtime/signals.py.

    Args:
        cfg: has device, dtype, dist_timeout, parallel, batch_size and deterministic.
    Raises:
        ConfigError: out of memory. PeerLost: another process died.
    """
    with signals.listening():
        deterministic(cfg.deterministic)
        try:
            world = join(cfg.device, cfg.dtype, cfg.dist_timeout, cfg.parallel == "fsdp")
            try:
                yield world
            except (RuntimeError, MemoryError) as error:
                raise world.explain(error, cfg.batch_size) from None
        finally:
            deterministic(False)
            leave()


def join(device: str, dtype: str, timeout: int, sharded: bool = False) -> World:
    """Initialize the process group if torchrun started this process: NCCL on GPUs, gloo on CPUs.

    Args:
        device: "cpu", "cuda", "cuda:N", or "auto".
        dtype: "float32", "bfloat16", or "auto": bfloat16 on a GPU that supports it.
        timeout: of the watchdog, in seconds. The backend's is a minute longer, as its message is less specific.
        sharded: use FSDP2 if there are several processes.
    """
    device = resolve(device)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" in os.environ and device != "cpu":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)  # the default of device="cuda"
    if "RANK" in os.environ:
        options: dict[str, Any] = {"timeout": datetime.timedelta(seconds=timeout + 60)}
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
        if one_machine and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # After a restart the agent's store still has the addresses of the old processes (pytorch issue 135712). On
            # several machines, whose restart counts may differ, torchrun needs a variable (docs/RELIABILITY.md).
            options |= {"store": store_of_torchrun(timeout + 60), "rank": rank, "world_size": size}
        dist.init_process_group("gloo" if device == "cpu" else "nccl", **options)
        cli.alone = True
    fast = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and fast) else torch.float32
    watchdog = Watchdog(rank, size, timeout) if size > 1 else None
    return World(rank, size, torch.device(device), precision, sharded and size > 1, watchdog)


def problems(cfg: Any) -> Iterator[tuple[str, str]]:
    """Problems of `device` and the number of processes, for `parse`."""
    yield from device_problems(cfg.device)
    if environment_problem():
        return
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.gradient_accumulation_steps % processes:
        yield "gradient_accumulation_steps", (
            f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} counts the micro-batches of all processes "
            f"together and is not divisible by the {processes} processes of this run"
        )
    if cfg.cuda_graph and (processes > 1 or resolve(cfg.device) == "cpu"):
        yield "cuda_graph", f"cuda_graph=True is for one process on a GPU, not {processes} on {resolve(cfg.device)}"


def environment_problem() -> str | None:
    """What is wrong with the variables by which torchrun tells a process its place, if anything is."""
    lowest = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 0}
    for name, low in lowest.items():
        value = os.environ.get(name, "1")
        if not value.isdecimal() or int(value) < low:
            return f"the environment has {name}={value!r}, not a number from {low} on: unset it, or start with torchrun"
    place = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    missing = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
               if name not in os.environ]  # fmt: skip
    if place and missing:
        return (f"the environment has {' and '.join(place)}, but no {', '.join(missing)}: unset {' and '.join(place)}, "
                "or start with torchrun")  # fmt: skip
    try:  # torch would try again until its timeout
        socket.getaddrinfo(os.environ["MASTER_ADDR"] if place else None, 0)
    except (OSError, UnicodeError) as error:
        return f"the environment has MASTER_ADDR={os.environ['MASTER_ADDR']!r}: {cli.reason(error)}"
    return None


def device_problems(device: str) -> Iterator[tuple[str, str]]:
    """Problems of `device` and of the environment, for `parse`."""
    if problem := environment_problem():
        yield "", problem
        return
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        yield "device", f"device={device!r} must be auto, cpu, cuda or cuda:N"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        yield "device", f"device={device!r}, but torch finds no GPU here: use --device=cpu"
    elif device.startswith("cuda:") and int(device[5:]) >= gpus:
        yield "device", f"device={device!r}, but torch finds {gpus} here: cuda:0 to cuda:{gpus - 1}"
    elif resolve(device) != "cpu" and processes > gpus:
        yield "device", (f"{processes} processes on this machine, but only {gpus} GPUs: "
                         f"use --nproc_per_node={gpus}, or --device=cpu")  # fmt: skip


def resolve(device: str) -> str:
    """Replace "auto" by "cuda" if there is a GPU, otherwise by "cpu"."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def leave() -> None:
    """Undo `join`."""
    for thread in threading.enumerate():
        if isinstance(thread, Watchdog):
            thread.over.set()
            thread.join(2)  # it must not be using the store while Python shuts down
    if dist.is_initialized():
        LEFT.append(dist.group.WORLD)
        dist.destroy_process_group()


def end(code: int) -> NoReturn:
    """sys.exit(code), but after using a process group, exit without finalizing the interpreter.

    While it finalizes, a gloo thread may free the tensors of the last collective, and the process aborts or hangs
    (pytorch issue 190489).
    """
    if LEFT:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def compilation(asked: bool | None, device: torch.device) -> tuple[bool, bool | None, str | None]:
    """(compile the model, compile the optimizer (None: if it is large enough), a message if torch.compile fails here).

    Args:
        asked: True for both, False for neither, None for the optimizer, and on a GPU also the model.
    """
    if asked is False or (asked is None and device.type == "cpu"):  # a step of ours itself does without a compiler
        return False, asked, None
    try:
        torch.compile(lambda x: x * x + 1)(torch.ones(64, device=device))
    except Exception as error:  # of any type: the run does not depend on torch.compile
        problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return False, False, f"torch.compile does not work here, the run continues without it: {problem}"
    return bool(asked) or device.type == "cuda", asked, None
