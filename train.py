"""Train a GPT, on one CPU core or on many GPUs, with an optimizer that may learn its own coefficients.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --optimizer=adam --hyper_lr=None --hyper_momentum=0.0 --out_dir=out/adam
    python train.py config/quickstart.py --init_from=auto
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_mada.py
    python train.py --help

A step is an optimizer step. Everything random is a pure function of `seed`: the weights at the start, the batch of step
s (of s and the place in the global batch) and its dropout (of s and the micro-batch). So the number of processes
changes nothing but speed, and a resumed run needs no state but weights, optimizer and step.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from data import DataError, Dataset, Tokens, open_dataset, train_batch, val_starts
from model import GPT, IGNORE, GPTConfig, peak_flops
from optim import OPTIMIZERS, build_optimizer
from runtime import checkpoint, huggingface, memory, parallel, signals
from runtime.checkpoint import CheckpointError
from runtime.parallel import World
from runtime.recorder import Recorder, claim, final_coefficients
from runtime.settings import ConfigError, HelpRequested, parse
from runtime.spikes import Diverged, GoBack, Spikes
from runtime.watchdog import GO_ON, LOST, Lost

COEFFICIENTS = ("beta1", "beta2", "beta3", "rho", "c", "gamma", "eps")
STARTS = ("scratch", "resume", "auto")
OptimizerName = Literal["adam", "amsgrad", "avgrad", "yogi", "adan", "lion", "sgd", "hyperadam", "mada", "madamax"]


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are GPT-2 small on OpenWebText; config/ has one file for each known run."""

    # the run
    out_dir: Annotated[str, "folder for checkpoints, metrics.csv, config.json and figure.png"] = "out"
    init_from: Annotated[
        str, "scratch; resume: the newest whole checkpoint in out_dir; auto: that or scratch; a checkpoint's path; or "
        "what `weights` takes, for scratch with these"
    ] = "scratch"
    weights: Annotated[
        str | None, "start with these instead of random weights: gpt2, gpt2-medium, gpt2-large, gpt2-xl or a folder in "
        "Hugging Face's format. They decide n_layer, n_head, n_embd and bias, and lend their first block_size positions"
    ] = None
    seed: Annotated[int, "fixes weights, batches and dropout (0 or more)"] = 1337
    max_iters: Annotated[int, "length of the run (steps)"] = 100_000
    log_interval: Annotated[int, "between two rows of metrics (steps)"] = 10
    eval_interval: Annotated[int, "between two validations (steps)"] = 500
    eval_iters: Annotated[int, "validation windows of block_size tokens, the same every time; 0 is the whole split"] = 0
    checkpoint_interval: Annotated[int, "between two checkpoints (steps); 0 is only after validations"] = 0
    always_save_checkpoint: Annotated[bool, "save after each validation, not only after the best so far"] = True
    keep_checkpoints: Annotated[int, "newest checkpoints kept, besides the best (count)"] = 2
    max_refused: Annotated[int, "stop after so many steps in a row with a gradient that is not finite (steps)"] = 20
    on_spike: Annotated[
        Literal["log", "stop", "skip"],
        "after a loss spike: say so, stop, or go back to the last validation and skip the batches since",
    ] = "log"
    spike_deviations: Annotated[
        float, "a loss so far above the mean of the last 100 rows is a spike (standard deviations); 0 looks for none"
    ] = 7.0
    wandb_log: Annotated[bool, "send the metrics to Weights & Biases as well"] = False
    wandb_project: Annotated[str, "project there"] = "nanomada"
    wandb_run_name: Annotated[str | None, "name of the run there; None lets it choose one"] = None
    # data
    dataset: Annotated[str, "a folder of data/, or the path of a prepared one"] = "openwebtext"
    verify_data: Annotated[bool, "read the whole data set first: checksums, ids within the vocabulary"] = False
    batch_size: Annotated[int, "sequences in a micro-batch of one process"] = 12
    gradient_accumulation_steps: Annotated[int, "micro-batches in a step, over all processes together"] = 40
    block_size: Annotated[int, "length of a sequence (tokens)"] = 1024
    # model
    n_layer: Annotated[int, "blocks (count)"] = 12
    n_head: Annotated[int, "attention heads of a block (count)"] = 12
    n_embd: Annotated[int, "width of the residual stream (features)"] = 768
    dropout: Annotated[float, "probability of dropping an activation (0 to below 1)"] = 0.0
    bias: Annotated[bool, "biases in linear layers and layer norms"] = False
    vocab_multiple: Annotated[int, "rows of the embedding table are rounded up to this (rows)"] = 64
    # optimizer
    optimizer: Annotated[OptimizerName, "update rule"] = "mada"
    learning_rate: Annotated[float, "highest learning rate, after the warm-up (weight units per step)"] = 6e-4
    weight_decay: Annotated[float, "decoupled decay of matrices (times the learning rate, per step)"] = 0.1
    grad_clip: Annotated[float, "largest global gradient norm (loss per weight unit); 0 is no clipping"] = 1.0
    beta1: Annotated[float | None, "decay of the first moment, at the start (per step); None: the rule's own"] = None
    beta2: Annotated[float | None, "decay of the second moment, at the start (per step); None: the rule's own"] = None
    beta3: Annotated[float | None, "Adan's gradient difference, at the start (per step); None: the rule's own"] = None
    rho: Annotated[float | None, "1 is Adam's second moment, 0 AVGrad's mean (fraction); None: the rule's own"] = None
    c: Annotated[float | None, "1 is Adam's second moment, 0 Yogi's (fraction); None: the rule's own"] = None
    gamma: Annotated[float | None, "1 is the adaptive direction, 0 Lion's (fraction); None: the rule's own"] = None
    eps: Annotated[float | None, "added to the denominator (loss per weight unit); None: the rule's own"] = None
    coefficients_from: Annotated[
        str | None, "start from the coefficients that a finished run ended with: its out_dir, or its record (MADA-FS)"
    ] = None
    hyper_lr: Annotated[
        dict[str, float] | None, "learning rate of each coefficient to learn, by name (per step); None: the rule's own"
    ] = None
    hyper_momentum: Annotated[float | dict[str, float], "momentum of the hypergradients, for all or by name"] = 0.0
    hyper_start: Annotated[int, "coefficients rest until this step (steps)"] = 0
    hyper_clip: Annotated[float, "hypergradients are clamped to plus and minus this (loss per unit)"] = 10.0
    order: Annotated[
        Literal["coefficients_first", "weights_first"], "which of the two is updated first in a step"
    ] = "coefficients_first"
    decay_lr: Annotated[bool, "cosine decay after the warm-up; otherwise the learning rate stays"] = True
    warmup_iters: Annotated[int, "linear warm-up (steps)"] = 2000
    lr_decay_iters: Annotated[int | None, "end of the decay (steps); None: max_iters"] = None
    min_lr: Annotated[float, "learning rate at the end of the decay (weight units per step)"] = 6e-5
    # machine
    device: Annotated[str, "cpu, cuda or cuda:N; auto is cuda where there is one"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], "of matmuls; weights stay float32; auto: bfloat16 on a GPU that has it"
    ] = "auto"
    parallel: Annotated[
        Literal["ddp", "fsdp"], "of several processes each has the whole model (ddp) or a part of it (fsdp)"
    ] = "ddp"
    recompute: Annotated[
        bool, "keep little of a block for the backward pass, compute it again: less memory, about a third more time"
    ] = False
    compile: Annotated[
        bool | None, "torch.compile: True model and optimizer, False neither, None optimizer, and model on a GPU"
    ] = None
    dist_timeout: Annotated[int, "a process that waits longer for the others gives up (seconds)"] = 1800


def check(cfg: Config) -> Iterator[tuple[str, str]]:
    """(fields concerned, what is wrong and what is allowed) for each impossible value or combination."""
    values = dataclasses.asdict(cfg)
    for name in ("max_iters", "log_interval", "eval_interval", "keep_checkpoints", "max_refused", "batch_size",
                 "gradient_accumulation_steps", "block_size", "n_layer", "n_head", "n_embd", "vocab_multiple",
                 "dist_timeout"):
        if values[name] < 1:
            yield name, f"{name}={values[name]} must be 1 or more"
    for name in ("seed", "eval_iters", "checkpoint_interval", "warmup_iters", "grad_clip", "min_lr",
                 "spike_deviations"):
        if values[name] < 0:
            yield name, f"{name}={values[name]} must be 0 or more"
    choices = f"{', '.join(huggingface.RELEASED)} or a folder with config.json and model.safetensors"
    named = named_weights(cfg)
    if cfg.init_from not in STARTS and not cfg.init_from.endswith(checkpoint.KINDS) and not named:
        yield "init_from", (f"init_from={cfg.init_from!r} must be scratch, resume, auto, the path of a ckpt_*.pt or "
                            f".shards, {choices}")  # fmt: skip
    if cfg.weights is not None and not huggingface.known(cfg.weights):
        yield "weights", f"weights={cfg.weights!r} must be {choices}"
    elif cfg.weights and named not in (None, cfg.weights):
        yield "init_from weights", f"init_from={cfg.init_from!r} and weights={cfg.weights!r} are two starts"
    if cfg.n_head > 0 and cfg.n_embd % cfg.n_head:
        yield "n_embd n_head", f"n_embd={cfg.n_embd} is not divisible by n_head={cfg.n_head}"
    if not 0 <= cfg.dropout < 1:
        yield "dropout", f"dropout={cfg.dropout} must be 0 or more and below 1"
    if cfg.decay_lr and cfg.min_lr > cfg.learning_rate:
        yield "min_lr learning_rate decay_lr", f"min_lr={cfg.min_lr} is above learning_rate={cfg.learning_rate}"
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.gradient_accumulation_steps % processes:
        yield "gradient_accumulation_steps", (
            f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} counts the micro-batches of all processes "
            f"together and is not divisible by the {processes} processes of this run"
        )
    yield from parallel.device_problems(cfg.device)
    try:  # the optimizer knows best what it takes
        tiny_optimizer(cfg)
    except (ValueError, TypeError) as error:
        names = "optimizer learning_rate hyper_lr hyper_momentum hyper_start hyper_clip order " + " ".join(COEFFICIENTS)
        yield names, ": ".join([str(error), *left_over(cfg)])


def left_over(cfg: Config) -> Iterator[str]:
    """What to add to a command line whose config file speaks of coefficients that the optimizer does not have."""
    rule = OPTIMIZERS[cfg.optimizer]
    others = {*COEFFICIENTS} - {*rule.table, *rule.constants}
    add = [f"--{name}=None" for name in COEFFICIENTS if name in others and getattr(cfg, name) is not None]
    add += ["--hyper_lr=None"] * bool(others & {*(cfg.hyper_lr or ())})
    add += ["--hyper_momentum=0.0"] * (isinstance(cfg.hyper_momentum, dict) and bool(others & {*cfg.hyper_momentum}))
    if add:
        yield f"for {cfg.optimizer} add {' '.join(add)}"


def settled(cfg: Config) -> Config:
    """The config with the coefficients of `coefficients_from`, if any. Raises ConfigError."""
    if cfg.coefficients_from is None:
        return cfg
    found: dict[str, Any] = final_coefficients(cfg.coefficients_from, COEFFICIENTS, tiny_optimizer(cfg).table)
    cfg = dataclasses.replace(cfg, **found)
    try:
        tiny_optimizer(cfg)
    except ValueError as error:
        raise ConfigError(f"coefficients_from={cfg.coefficients_from!r}: {error}") from None
    return cfg


def optimizer_arguments(cfg: Config, compile: bool | None) -> dict[str, Any]:
    """The keywords of `build_optimizer`; what the config leaves at None is left to the optimizer."""
    chosen = {name: getattr(cfg, name) for name in (*COEFFICIENTS, "hyper_lr") if getattr(cfg, name) is not None}
    return chosen | {
        "lr": cfg.learning_rate,
        "hyper_momentum": cfg.hyper_momentum,
        "hyper_start": cfg.hyper_start,
        "hyper_clip": cfg.hyper_clip,
        "order": cfg.order,
        "max_grad_norm": cfg.grad_clip or math.inf,  # infinity clips nothing, but lets no NaN or infinity pass either
        "compile": compile,
    }


def tiny_optimizer(cfg: Config) -> Any:
    """The optimizer of a run on a single number, to ask it what it takes and learns before there is a model."""
    return build_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.zeros(1))], **optimizer_arguments(cfg, False))


def learning_rate(step: int, cfg: Config) -> float:
    """The rate of step 1, 2, ...: linear warm-up, then a cosine down to min_lr, then min_lr."""
    done = step - 1
    end = cfg.max_iters if cfg.lr_decay_iters is None else cfg.lr_decay_iters
    if done < cfg.warmup_iters:
        return cfg.learning_rate * (done + 1) / (cfg.warmup_iters + 1)
    if not cfg.decay_lr:
        return cfg.learning_rate
    if done >= end:
        return cfg.min_lr
    progress = (done - cfg.warmup_iters) / (end - cfg.warmup_iters)  # 0 to 1
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)


def accumulate(net: Any, tokens: Tokens, step: int, cfg: Config, world: World) -> torch.Tensor:
    """Add up the gradient of the mean loss over the global batch of a step; return this process's share of that mean.

    The global batch is gradient_accumulation_steps micro-batches of batch_size rows. Each process takes its part of
    them, and DDP averages the gradients with the last one (FSDP with each: no process has room for a whole gradient).
    """
    part = cfg.gradient_accumulation_steps // world.size
    total = torch.zeros((), device=world.device)
    for i in range(part):
        micro = world.rank * part + i  # its place in the global batch
        rows = range(micro * cfg.batch_size, (micro + 1) * cfg.batch_size)
        x, y = train_batch(tokens, cfg.seed, step, rows, cfg.block_size)  # (B, T) each
        if cfg.dropout:  # the masks belong to the micro-batch, whichever process works on it
            torch.manual_seed(int(np.random.SeedSequence((cfg.seed, step, micro)).generate_state(1, np.uint64)[0]))
        with world.keeping(net) if i < part - 1 else nullcontext():
            with world.autocast():
                loss = net(world.move(x), world.move(y))[1]
            (loss / part).backward()
        total += loss.detach() / cfg.gradient_accumulation_steps
    return total


@torch.no_grad()
def evaluate(net: Any, tokens: Tokens, cfg: Config, world: World) -> float:
    """Mean loss (nats per token) over the fixed validation windows, which the processes share out among them.

    Raises Stopped, on every process, if one of them was asked to leave meanwhile.
    """
    starts = val_starts(tokens, cfg.block_size, cfg.eval_iters or None)  # (windows)
    B, T = cfg.batch_size, cfg.block_size
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    net.eval()
    for first in range(world.rank * B, len(starts) + world.rank * B, world.size * B):  # as many passes for everyone
        if world.any(signals.asked()) if world.sharded else signals.asked():  # none goes through a sharded model alone
            break
        world.at()
        window = torch.from_numpy(tokens.windows(starts[first : first + B], T + 1))  # (n, T + 1), n is B but at the end
        x, y = torch.zeros(B, T, dtype=torch.int64), torch.full((B, T), IGNORE)  # always (B, T): nothing recompiles
        x[: len(window)], y[: len(window)] = window[:, :-1], window[:, 1:]
        with world.autocast():
            total += net(world.move(x), world.move(y), reduction="sum")[1]
    net.train()
    loss, leaving = world.sum(total, signals.asked())
    if leaving:
        raise signals.Stopped("during a validation")
    return loss / (len(starts) * T)


def named_weights(cfg: Config) -> str | None:
    """The weights that `init_from` names, if it names any."""
    return cfg.init_from if cfg.init_from not in STARTS and huggingface.known(cfg.init_from) else None


def settle(cfg: Config, weights: str | None, saved: dict[str, Any] | None, vocab_size: int) -> tuple[Config, GPTConfig]:
    """The model's config, and the run's with that shape: of a run that starts, or once started, with `weights`, theirs.

    Raises ConfigError or CheckpointError if data, weights and checkpoint do not belong together.
    """
    own = [field.name for field in dataclasses.fields(GPTConfig) if field.name != "vocab_size"]
    shape = {name: getattr(cfg, name) for name in own} | {"vocab_size": vocab_size}
    before = saved["config"].get("weights") if saved else None
    if weights is None and before is None:
        return cfg, GPTConfig(**shape)
    if saved and weights not in (None, before):
        raise CheckpointError(f"the checkpoint in {cfg.out_dir} does not fit: weights={weights} (there {before})")
    theirs = saved["model_config"] if saved else dataclasses.asdict(huggingface.describe(str(weights), cfg.block_size))
    shape |= {name: theirs[name] for name in ("n_layer", "n_head", "n_embd", "bias")}
    if theirs["vocab_size"] != vocab_size:
        raise ConfigError(f"{cfg.dataset} has {vocab_size} tokens, {weights or before} has {theirs['vocab_size']}: "
                          "choose a data set with the tokens of the weights")
    cfg = dataclasses.replace(cfg, weights=weights or before, **{name: shape[name] for name in own})
    return cfg, GPTConfig(**shape)


@dataclass
class Run:
    """A run on one of its processes, ready to go on from its step `start`."""

    cfg: Config  # as given, but for the shape of the weights it started from
    dataset: Dataset
    model: GPT
    net: Any  # the model as it runs here
    averaging: Any  # the same, with gradients that are the mean over the processes
    optimizer: Any
    recorder: Recorder | None  # on the first process
    spikes: Spikes
    start: int
    seconds: float  # spent up to there
    resumed: bool
    unmeasured: float | None  # training loss of a step that the run left before it measured what was due then


def begin(cfg: Config, world: World, back: GoBack | None) -> Run:
    """Data, checkpoint or weights, model, optimizer and record of a run that starts or goes on."""
    # Small sets are prepared now, by one process, while the others wait for it.
    dataset = open_dataset(cfg.dataset, prepare=True, verify=cfg.verify_data and world.rank == 0)
    for tokens in (dataset.train, dataset.val):
        val_starts(tokens, cfg.block_size, 1)  # refuses a block that is longer than the data
    weights = cfg.weights or named_weights(cfg)
    init_from = str(back.to.path) if back else "scratch" if cfg.init_from == weights else cfg.init_from
    saved, damaged = checkpoint.choose(init_from, cfg.out_dir)
    start, seconds = (saved["step"], saved["seconds"]) if saved else (0, 0.0)
    if start > cfg.max_iters:
        raise ConfigError(f"the checkpoint in {cfg.out_dir} is at step {start}, beyond max_iters={cfg.max_iters}")
    if not world.same(start):  # after which all have read: claim moves files
        raise CheckpointError(f"the processes do not see the same checkpoints: out_dir={cfg.out_dir!r} must be shared")
    cfg, model_config = settle(cfg, weights, saved, dataset.vocab_size)
    tiny = tiny_optimizer(cfg)
    identity = dataclasses.asdict(model_config) | {"optimizer": cfg.optimizer, "learned": list(tiny.learned)}
    changes = checkpoint.changes(saved, identity, dataclasses.asdict(cfg)) if saved else []
    if saved:  # another length stretches the cosine, and the rate jumps
        before = dataclasses.replace(cfg, **{k: v for k, v in saved["config"].items() if hasattr(cfg, k)})
        was, now = learning_rate(start + 1, before), learning_rate(start + 1, cfg)
        changes += [f"so the learning rate of step {start + 1} is {now:.3g} (was {was:.3g})"] * (was != now)
    state = memory.state_bytes(tiny)
    need = memory.needed(model_config, cfg.batch_size, state, world.size, cfg.parallel, world.dtype, cfg.recompute)
    compiled = cfg.compile is not False and (cfg.compile or world.device.type == "cuda")
    if too_much := memory.problem(need, world.device, compiled):
        raise ConfigError(f"{too_much}: {memory.advice(cfg.batch_size)}")
    model: GPT | None = None
    if cfg.weights and not saved:  # before anything is moved, as this may refuse
        model = huggingface.load(cfg.weights, cfg.vocab_multiple, cfg.dropout, cfg.block_size)
    named = init_from.endswith(checkpoint.KINDS)
    elsewhere = named and Path(init_from).parent.resolve() != Path(cfg.out_dir).resolve()
    if world.rank == 0:
        for line in damaged:
            print(f"train.py: passing over a checkpoint: {line}", file=sys.stderr)
        claim(cfg.out_dir, keep=None if saved is None or elsewhere else start)
        print(f"memory of a process: about {need}, there are {memory.capacity(world.device) / 1e9:.2f} GB", flush=True)

    torch.manual_seed(cfg.seed)
    model = (model or GPT(model_config)).to(world.device)
    problem = parallel.compiler_problem(world.device) if cfg.compile is not False else "not asked for"
    arguments = optimizer_arguments(cfg, False if problem else cfg.compile)
    compiled = compiled and problem is None
    model.recompute(cfg.recompute)
    net, averaging = world.spread(model, compiled)
    optimizer: Any = build_optimizer(cfg.optimizer, model.param_groups(cfg.weight_decay), **arguments)
    if saved:
        checkpoint.restore(saved, model, optimizer)
    optimizer.zero_grad(set_to_none=False)  # views of its flat buffer: otherwise the first step would hold all twice

    spikes = Spikes(**saved.get("spikes", {})) if saved else Spikes()
    if back:
        spikes.skipped = back.skipped
    recorder = None
    if world.rank == 0:
        full = checkpoint.space_problem(cfg.out_dir, [model.state_dict(), optimizer.state_dict()], cfg.keep_checkpoints)
        if full and not saved:  # a run that has begun tries: where a save fails it goes on
            raise ConfigError(full)
        recorder = Recorder(dataclasses.asdict(cfg), optimizer, start if saved else None,
                            processes=world.size, device=world.card, dtype=str(world.dtype),
                            parameters=model.num_parameters(), skipped=spikes.skipped)
        recorder.say(f"{cfg.optimizer}, {model.num_parameters():,} parameters, {world.size} x {world.card}")
        if cfg.weights and not saved:
            recorder.say(f"weights of {cfg.weights}: {cfg.n_layer} layers of {cfg.n_embd} features, the first "
                         f"{cfg.block_size} positions, {model_config.vocab_size} tokens in "
                         f"{model_config.padded_vocab_size} rows")
        if problem is not None and cfg.compile is not False:
            recorder.say(f"torch.compile does not work here, the run goes on without it: {problem}")
        if saved:
            skipped = [f"without the {count} batches after step {after}" for after, count in spikes.skipped]
            recorder.say(", ".join([f"resuming after step {start}", *skipped, *changes]))
            if full:
                recorder.say(full)
    return Run(cfg, dataset, model, net, averaging, optimizer, recorder, spikes, start, seconds, saved is not None,
               saved.get("pending_loss") if saved else None)  # fmt: skip


def save(run: Run, world: World, step: int, val_loss: float | None, unmeasured: float | None, seconds: float) -> None:
    """A checkpoint of the run after a step, by its first process, or by all that have a part of the model. Where that
    fails it is said, and the run goes on."""
    content = {
        "config": dataclasses.asdict(run.cfg),
        "model_config": dataclasses.asdict(run.model.config),
        "model": run.model.state_dict(keep_vars=world.sharded),  # which tell what is tied
        "optimizer": run.optimizer.state_dict(),
        "seconds": seconds,
        "pending_loss": unmeasured,
        "spikes": dataclasses.asdict(run.spikes),
    }
    write = checkpoint.save_shards if world.sharded else checkpoint.save
    try:
        write(run.cfg.out_dir, step, val_loss, content, run.cfg.keep_checkpoints)
    except OSError as error:
        if run.recorder:
            run.recorder.say(f"step {step} is not saved ({error.strerror}); the checkpoints before it are as they were")


def train(cfg: Config, world: World, back: GoBack | None = None) -> None:
    """One run from its data to its figure, or the rest of it after it went `back` before a loss spike.

    Raises one of the errors of `main` for what the user can put right, GoBack for `main` to call again.
    """
    run = begin(cfg, world, back)
    cfg, model, optimizer, recorder, spikes = run.cfg, run.model, run.optimizer, run.recorder, run.spikes
    tokens_per_step = cfg.gradient_accumulation_steps * cfg.batch_size * cfg.block_size
    peak = peak_flops(world.device, world.dtype)
    earlier = [found.val_loss for found in checkpoint.find(cfg.out_dir) if found.val_loss is not None]
    val_loss, best_val = earlier[-1] if earlier else math.nan, min(earlier, default=math.inf)
    loss = torch.tensor(0.0 if run.unmeasured is None or world.rank else run.unmeasured, device=world.device)
    leaving = False
    begun = mark = time.perf_counter()  # of the run, and of the steps since the last row
    marked = run.start

    for step in range(run.start, cfg.max_iters + 1):
        world.at(step)
        lr = learning_rate(max(step, 1), cfg)
        if step > run.start:
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = accumulate(run.averaging, run.dataset.train, spikes.batch(step), cfg, world)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)  # they stay views of the optimizer's flat buffer
            if recorder:
                recorder.step()
            signals.wait_for_boundaries()
        elif run.resumed and run.unmeasured is None:
            continue  # this step was measured before it was saved

        # Nothing above waits for the device. What follows does, at some of the steps.
        last = step == cfg.max_iters
        validate = last or step % cfg.eval_interval == 0
        report = validate or step % cfg.log_interval == 0
        measured: float | None = None
        if report or (world.size == 1 and signals.asked()):  # several processes agree to leave where they meet anyway
            train_loss, leaving = world.sum(loss, signals.asked())
            refused = int(optimizer.refused)
            speed = tokens_per_step * (step - marked) / (time.perf_counter() - mark)  # tokens per second
        if validate and not leaving:
            try:
                val_loss = measured = evaluate(run.net, run.dataset.val, cfg, world)
            except signals.Stopped:
                leaving = True
        if report and not leaving:
            if recorder:
                recorder.write(
                    {
                        "step": step,
                        "tokens": step * tokens_per_step,
                        "seconds": round(run.seconds + time.perf_counter() - begun, 3),
                        "train_loss": train_loss if step else None,
                        "val_loss": measured,
                        "lr": lr if step else None,
                    },
                    {"tok/s": f"{speed:,.0f}" if step else None,
                     "MFU": f"{speed * model.flops_per_token() / (peak * world.size):.1%}" if peak and step else None},
                )
            trouble: Exception | None = None
            if refused >= cfg.max_refused:
                newest = checkpoint.last_of(checkpoint.find(cfg.out_dir), "there")
                trouble = Diverged(f"step {step}: no finite gradient for {refused} steps; weights and coefficients are "
                                   f"as before them, {newest}: lower the learning rate")
            elif step and (spike := spikes.add(train_loss, cfg.spike_deviations)):
                if recorder:
                    recorder.say(f"step {step}: a loss spike: {spike}")
                trouble = spikes.answer(cfg.on_spike, step, checkpoint.find(cfg.out_dir))
            if trouble:
                if recorder:
                    recorder.close()
                raise trouble

        is_best = measured is not None and measured < best_val
        due = cfg.checkpoint_interval and step % cfg.checkpoint_interval == 0
        save_now = leaving or last or due or is_best or (validate and cfg.always_save_checkpoint)
        if step and save_now and (recorder or world.sharded):
            unmeasured = train_loss if leaving and report else None
            save(run, world, step, measured, unmeasured, run.seconds + time.perf_counter() - begun)
        best_val = val_loss if is_best else best_val
        if leaving:
            world.sum(loss)  # nobody goes before the first process has saved: torchrun ends the others with the first
            if recorder:
                recorder.close()
            raise signals.Stopped(f"after step {step}")
        if report:
            mark, marked = time.perf_counter(), step  # validating and saving are no training speed

    if recorder:
        entropy = run.dataset.manifest.get("val_unigram_entropy", math.nan)  # the loss of knowing only frequencies
        recorder.say(f"validation loss {val_loss:.4f} nats per token; unigram entropy of the corpus {entropy:.4f}")
        recorder.close()
        try:
            from runtime.figure import draw  # matplotlib is a second of start-up that only the end needs

            print(f"the run is in {cfg.out_dir}, its picture in {draw(cfg.out_dir)}")
        except (ImportError, OSError) as error:
            print(f"the run is in {cfg.out_dir}, no picture: {error}")


def main(argv: list[str]) -> int:
    """The command line. Exit code 0: done; 2: a mistake to put right; 3: diverged; 4: another process is gone or hangs;
    130: stopped by a signal."""
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        cfg = settled(parse(Config, argv, check, "train.py"))
        with signals.listening():
            try:
                world, back = parallel.join(cfg.device, cfg.dtype, cfg.dist_timeout, cfg.parallel == "fsdp"), None
                while True:
                    try:
                        train(cfg, world, back)
                        break
                    except GoBack as spike:
                        back = spike.with_traceback(None)  # which holds the model and optimizer that are given up
                    except torch.OutOfMemoryError as error:
                        reason = str(error).partition(". GPU")[0]
                        raise ConfigError(f"{reason}: {memory.advice(cfg.batch_size)}") from None
                    except RuntimeError as error:
                        raise world.explain(error) from None
            finally:
                parallel.leave()
    except HelpRequested as text:
        print(text)
    except (ConfigError, DataError, CheckpointError) as error:  # any other ValueError is a bug with its traceback
        parallel.complain("train.py", error)
        return 2
    except Diverged as error:
        if is_first:
            print(f"train.py: {error}", file=sys.stderr)
        return 3
    except Lost as error:
        print(f"train.py: {error}; {GO_ON}", file=sys.stderr)
        return LOST
    except KeyboardInterrupt as stopped:
        if is_first:
            print(f"train.py: stopped {stopped}; {GO_ON}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    parallel.end(main(sys.argv[1:]))
