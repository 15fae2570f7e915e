"""The machine a run has: its processes, their devices, and the precision of their matmuls."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from runtime import memory, signals
from runtime.settings import ConfigError
from runtime.watchdog import PeerLost, Watchdog, store_of_torchrun

# Process groups that were left. They stay: were DistributedDataParallel's the last reference to one, it would be freed
# with the interpreter locked, while its thread waits for that lock to free a tensor.
LEFT: list[Any] = []


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees it."""

    rank: int  # of this process, 0 to size - 1
    size: int
    device: torch.device  # of this process
    dtype: torch.dtype  # of matmuls; weights and everything that adds up stay float32
    sharded: bool = False  # each process has a part of the model only (FSDP2)
    watchdog: Watchdog | None = None  # where there are several processes

    def at(self, step: int | None = None) -> None:
        """Tell the watchdog that this process goes on, and in which step (None: still the same)."""
        if self.watchdog:
            self.watchdog.at(step)

    @property
    def card(self) -> str:
        """The GPU as its maker calls it, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def explain(self, error: RuntimeError) -> Exception:
        """What gloo or NCCL report when another process is gone, in one line; any other error as it is."""
        text = str(error)
        if self.size == 1 or not re.search("gloo|NCCL|Connection (closed|reset)", text):
            return error
        reason = text.partition("]")[2].partition(". This is")[0].strip() or text.splitlines()[0]
        step = self.watchdog.step if self.watchdog else 0
        return PeerLost(f"rank {self.rank} lost another process in step {step} ({reason})")

    def move(self, x: torch.Tensor) -> torch.Tensor:
        """A batch on its way to the device, without waiting for it to arrive."""
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x

    def sum(self, x: torch.Tensor, asked: bool = False) -> tuple[float, bool]:
        """The sum of x over all processes, and whether any of them says `asked`. Waits for the device.

        The two travel together: agreeing to leave costs a run no collective and no wait of its own.
        """
        both = torch.stack([x, torch.full_like(x, float(asked))])
        if self.size > 1:
            dist.all_reduce(both)
        total, votes = both.tolist()
        return total, votes > 0

    def agreed(self, asked: bool) -> bool:
        """Whether to leave now. A sharded model needs all processes in each pass: there they leave together."""
        return self.any(asked) if self.sharded else asked

    def any(self, asked: bool) -> bool:
        """Whether any of the processes says `asked`. Waits for the device."""
        return self.sum(torch.zeros((), device=self.device), asked)[1]

    def same(self, number: int) -> bool:
        """Whether all processes have this number; none goes on before all have come here."""
        return self.sum(torch.tensor(number, dtype=torch.float64, device=self.device))[0] == number * self.size

    def parallelize(self, model: Any, compiled: bool) -> tuple[Any, Any]:
        """(the model as it runs on this process, the same with gradients that are the mean over all of them)."""
        if self.sharded:
            shard(model, self, compiled)
            return model, model
        net = torch.compile(model) if compiled else model
        return net, DistributedDataParallel(net) if self.size > 1 else net

    def no_sync(self, net: Any) -> AbstractContextManager[Any]:
        """While the gradients of a micro-batch need not travel yet. Sharded ones must: no process has room for all."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()


def shard(model: Any, world: World, compiled: bool) -> None:
    """Leave every process a part of each parameter. A block is whole, on all of them, only while it works.

    Parameters and sums of gradients stay float32. In bfloat16 the blocks travel and multiply as such, while embeddings,
    head and the residual stream remain what autocast makes of float32: the arithmetic of a model that is not sharded,
    but for the norms inside the blocks, whose weights are rounded too.
    """
    from torch.distributed.device_mesh import init_device_mesh  # two seconds of imports that only this needs
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    low = world.dtype if world.dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    blocks: Any = model.transformer["h"]
    for block in blocks:
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def session(cfg: Any) -> Iterator[World]:
    """The processes of a training run, from `join` to `leave`, while signals mean what runtime/signals.py says.

    Args:
        cfg: has device, dtype, dist_timeout, parallel and batch_size.
    Raises:
        ConfigError: out of memory. PeerLost: another process is gone.
    """
    with signals.listening():
        try:
            world = join(cfg.device, cfg.dtype, cfg.dist_timeout, cfg.parallel == "fsdp")
            try:
                yield world
            except torch.OutOfMemoryError as error:
                raise ConfigError(f"{str(error).partition('. GPU')[0]}: {memory.advice(cfg.batch_size)}") from None
            except RuntimeError as error:
                raise world.explain(error) from None
        finally:
            leave()


def join(device: str, dtype: str, timeout: int, sharded: bool = False) -> World:
    """Meet the other processes that torchrun started, through NCCL on GPUs and gloo on CPUs; alone without torchrun.

    Args:
        device: "cpu", "cuda", "cuda:N", or "auto".
        dtype: "float32", "bfloat16", or "auto" for bfloat16 on a GPU that has it.
        timeout: seconds after which a process gives up waiting for the others. The backend's own timeout is a minute
            longer: it knows less to say.
        sharded: give each process a part of the model only, where there are several.
    """
    device = resolve(device)
    rank, size = 0, 1
    if "RANK" in os.environ and device != "cpu":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)  # what asks for no device by name means this one
    if "RANK" in os.environ:
        backend = "gloo" if device == "cpu" else "nccl"
        meeting: dict[str, Any] = {"timeout": datetime.timedelta(seconds=timeout + 60)}
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
        if one_machine and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # After a restart the addresses of the dead are still in that store (pytorch issue 135712). On several
            # machines, whose restart counts may differ, docs/RELIABILITY.md names a variable for torchrun instead.
            numbers = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
            meeting |= {"store": store_of_torchrun(timeout + 60), **numbers}
        dist.init_process_group(backend, **meeting)
        rank, size = dist.get_rank(), dist.get_world_size()
    fast = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    low = dtype == "bfloat16" or (dtype == "auto" and fast)
    watchdog = Watchdog(rank, size, timeout) if size > 1 else None
    precision = torch.bfloat16 if low else torch.float32
    return World(rank, size, torch.device(device), precision, sharded and size > 1, watchdog)


def problems(cfg: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with `device` and the number of processes in a config, as `parse` wants it."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.gradient_accumulation_steps % processes:
        yield "gradient_accumulation_steps", (
            f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} counts the micro-batches of all processes "
            f"together and is not divisible by the {processes} processes of this run"
        )
    yield from device_problems(cfg.device)


def device_problems(device: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a `device` in a config, as the configurator wants it."""
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        yield "device", f"device={device!r} must be auto, cpu, cuda or cuda:N"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        yield "device", f"device={device!r}, but torch finds no GPU here: use --device=cpu"
    elif device.startswith("cuda:") and int(device[5:]) >= gpus:
        yield "device", f"device={device!r}, but torch finds {gpus} here: cuda:0 to cuda:{gpus - 1}"
    elif resolve(device) != "cpu" and processes > gpus:
        yield "device", (f"{processes} processes on this machine, but a GPU for {gpus} of them: "
                         f"use --nproc_per_node={gpus}, or --device=cpu")  # fmt: skip


def resolve(device: str) -> str:
    """`device` with "auto" decided: CUDA where there is a GPU."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def leave() -> None:
    """The end of what `join` began."""
    for thread in threading.enumerate():
        if isinstance(thread, Watchdog):
            thread.over.set()
            thread.join(2)  # not in the middle of a word to the store while Python shuts down
    if dist.is_initialized():
        LEFT.append(dist.group.WORLD)
        dist.destroy_process_group()


def complain(program: str, error: Exception) -> None:
    """A line on the mistake that ends this process. What is wrong before the processes meet is so on all of a machine,
    and the first of them says it; after that, it may be one process's own."""
    rank = os.environ.get("RANK", "0")
    if LEFT or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{program}: {error}" if rank == "0" else f"{program}: rank {rank}: {error}", file=sys.stderr)


def end(code: int) -> NoReturn:
    """sys.exit(code), but for one process of several, which ends at once.

    Otherwise an interpreter that goes may meet a thread of gloo's that wants to free the tensors of the last
    collective, and the process aborts or hangs (pytorch issue 190489).
    """
    if LEFT:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def compilation(asked: bool | None, device: torch.device) -> tuple[bool, bool | None, str | None]:
    """(compile the model, compile the optimizer (None: if it is large enough), a line on why not although asked for).

    Args:
        asked: True for both, False for neither, None for the optimizer, and the model on a GPU.
    """
    problem = None if asked is False else compiler_problem(device)
    if problem or asked is False:
        line = f"torch.compile does not work here, the run goes on without it: {problem}" if problem else None
        return False, False, line
    return bool(asked) or device.type == "cuda", asked, None


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work on this machine, found out by trying; None where it does."""
    try:
        torch.compile(lambda x: x * x + 1)(torch.ones(64, device=device))
    except Exception as error:  # whatever it is, one can train without
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
