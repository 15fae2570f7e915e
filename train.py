"""Train a GPT, on one CPU core or on many GPUs, with an optimizer that may learn its own coefficients.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --optimizer=adam --out_dir=out/adam
    python train.py config/quickstart.py --optimizer=path/to/rule.py:MyRule --out_dir=out/mine
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_mada.py
    python train.py --help

A step is an optimizer step. Everything random follows from the seed alone: the initial weights; the rows of batch n,
from (seed, n, place in the batch); the dropout masks, from (seed, n, micro-batch). n is the step's number, plus
how many batches were skipped after loss spikes. So the number of processes changes speed and round-off only.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from cli import program

import numpy as np
import torch

from data import Dataset, Tokens, open_dataset, train_batch, val_starts
from model import GPT, IGNORE
from runtime import checkpoint, graph, optimizers, parallel, signals, start
from runtime.out_dir import prepare_out_dir
from runtime.parallel import World
from runtime.recorder import Clock, Recorder
from runtime.settings import Count, Natural, NonNegative, Place, parse  # int >= 1, int >= 0, float >= 0, a path
from runtime.spikes import Rollback, Spikes, Stop, ended, stopped


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are GPT-2 small on OpenWebText; config/ has one file for each known run."""

    adapt, more_help = staticmethod(optimizers.adapt), staticmethod(optimizers.table)  # hooks of `parse`
    # the run
    out_dir: Annotated[Place, "folder for checkpoints, metrics.csv, config.json and figure.png"] = "out"
    init_from: Annotated[Place, "scratch; resume: out_dir's newest checkpoint; auto: either; or its path"] = "scratch"
    weights: Annotated[
        Place | None, "start with gpt2, gpt2-medium, gpt2-large, gpt2-xl or a folder in their format"] = None
    seed: Annotated[Natural, "fixes weights, batches and dropout"] = 1337
    max_iters: Annotated[Count, "length of the run (steps)"] = 100_000
    log_interval: Annotated[Count, "between two rows of metrics (steps)"] = 10
    eval_interval: Annotated[Count, "between two validations (steps)"] = 500
    eval_iters: Annotated[Natural, "validation windows of block_size tokens, always the same; 0: the whole split"] = 0
    checkpoint_interval: Annotated[Natural, "between two checkpoints (steps); 0: only after validations"] = 0
    always_save_checkpoint: Annotated[bool, "save after each validation, not only after the best so far"] = True
    keep_checkpoints: Annotated[Count, "newest checkpoints kept, besides the best (count)"] = 2
    max_skipped: Annotated[Count, "stop after so many steps in a row with a gradient that is not finite (steps)"] = 20
    on_spike: Annotated[Literal["log", "stop", "skip"], "at a spike; skip: roll back, omit batches since"] = "log"
    spike_deviations: Annotated[NonNegative, "a spike: above the mean of 100 losses by this (std); 0: none"] = 7.0
    wandb_log: Annotated[bool, "send the metrics to Weights & Biases as well"] = False
    wandb_project: Annotated[str, "project there"] = "nanomada"
    wandb_run_name: Annotated[str | None, "name of the run there; None lets it choose one"] = None
    # data
    dataset: Annotated[Place, "a folder of data/, or the path of a prepared one"] = "openwebtext"
    verify_data: Annotated[bool, "read the whole data set first: checksums, ids within the vocabulary"] = False
    batch_size: Annotated[Count, "sequences in a micro-batch of one process"] = 12
    gradient_accumulation_steps: Annotated[Count, "micro-batches in a step, over all processes together"] = 40
    block_size: Annotated[Count, "length of a sequence (tokens)"] = 1024
    # model
    n_layer: Annotated[Count, "blocks (count)"] = 12
    n_head: Annotated[Count, "attention heads of a block (count)"] = 12
    n_embd: Annotated[Count, "width of the residual stream (features)"] = 768
    dropout: Annotated[NonNegative, "probability of dropping an activation (below 1)"] = 0.0
    bias: Annotated[bool, "biases in linear layers and layer norms"] = False
    vocab_multiple: Annotated[Count, "rows of the embedding table are rounded up to this (rows)"] = 64
    # optimizer
    optimizer: Annotated[str, "a rule (below), or path/to/file.py:ClassName (executed), or package:ClassName"] = "mada"
    coefficients: Annotated[dict[str, Any], "where they start, or --NAME=VALUE"] = field(default_factory=dict)
    coefficients_from: Annotated[Place | None, "a finished run's out_dir or record, to start with its end"] = None
    hyper_lr: Annotated[dict[str, float], "rates: {NAME: rate}, or one number for all"] = field(default_factory=dict)
    hyper_momentum: Annotated[float | dict[str, float], "momentum of the hypergradients, for all or by name"] = 0.0
    hyper_optimizer: Annotated[Literal["sgd", "sign", "adam"], "of the coefficients; the paper's is sgd"] = "sgd"
    hyper_space: Annotated[Literal["linear", "log"], "log: in -log(1 - beta), logit(weight)"] = "linear"
    box: Annotated[dict[str, Any], "where a learned one may go, {NAME: (low, high)}"] = field(default_factory=dict)
    hyper_start: Annotated[Natural, "coefficients are not learned until after this step (steps)"] = 0
    hyper_clip: Annotated[float, "hypergradients are clamped to plus and minus this (loss per unit)"] = 10.0
    order: Annotated[Literal["coefficients_first", "weights_first"], "what a step updates first"] = "coefficients_first"
    scope: Annotated[Literal["global", "group", "tensor"], "who shares a coefficient that is learned"] = "global"
    learning_rate: Annotated[float, "highest learning rate, after the warm-up (weight units per step)"] = 6e-4
    weight_decay: Annotated[NonNegative, "decoupled decay of matrices (times the learning rate, per step)"] = 0.1
    grad_clip: Annotated[NonNegative, "largest global gradient norm (loss per weight unit); 0: no clipping"] = 1.0
    decay_lr: Annotated[bool, "cosine decay after the warm-up; otherwise the learning rate stays"] = True
    warmup_iters: Annotated[Natural, "linear warm-up (steps)"] = 2000
    lr_decay_iters: Annotated[Natural | None, "end of the decay (steps); None: max_iters"] = None
    min_lr: Annotated[NonNegative, "learning rate at the end of the decay (weight units per step)"] = 6e-5
    # machine
    device: Annotated[str, "cpu, cuda or cuda:N; auto is cuda where there is one"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], "of matmuls; auto: bfloat16 where a GPU has it"] = "auto"
    parallel: Annotated[Literal["ddp", "fsdp"], "each process has the whole model (ddp) or a part (fsdp)"] = "ddp"
    activation_checkpointing: Annotated[bool, "recompute blocks in the backward pass: less memory, slower"] = False
    compile: Annotated[bool | None, "model and optimizer; None: the optimizer, and the model on a GPU"] = None
    cuda_graph: Annotated[bool | None, "a step as CUDA graphs, on one GPU; None: where kernels are short"] = None
    deterministic: Annotated[bool, "the same bits for the same seed on a GPU too: slower"] = False
    dist_timeout: Annotated[Count, "a process that waits longer for the others gives up (seconds)"] = 1800


def check(cfg: Config) -> Iterator[tuple[str, str]]:
    """(fields concerned, what is wrong and what is allowed) for each impossible value or combination."""
    if cfg.n_embd % cfg.n_head:
        yield "n_embd n_head", f"n_embd={cfg.n_embd} is not divisible by n_head={cfg.n_head}"
    if cfg.dropout >= 1:
        yield "dropout", f"dropout={cfg.dropout} must be 0 or more and below 1"
    if cfg.decay_lr and cfg.min_lr > cfg.learning_rate:
        yield "min_lr learning_rate decay_lr", f"min_lr={cfg.min_lr} is above learning_rate={cfg.learning_rate}"
    yield from start.problems(cfg)
    yield from parallel.problems(cfg)
    yield from optimizers.problems(cfg)


def learning_rate(step: int, cfg: Config) -> float:
    """The rate of step 1, 2, ...: linear warm-up, then a cosine down to min_lr, then min_lr (0 at step 0)."""
    end = cfg.max_iters if cfg.lr_decay_iters is None else cfg.lr_decay_iters
    if step <= cfg.warmup_iters:
        return cfg.learning_rate * step / (cfg.warmup_iters + 1)
    if not cfg.decay_lr:
        return cfg.learning_rate
    if step > end:
        return cfg.min_lr
    progress = (step - 1 - cfg.warmup_iters) / (end - cfg.warmup_iters)  # 0 to 1
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)


def accumulate(net: Any, tokens: Tokens, batch: int, cfg: Config, world: World) -> torch.Tensor:
    """Put the gradient of the mean loss over global batch `batch` into .grad; return this process's part of that mean.

    A global batch is gradient_accumulation_steps micro-batches of batch_size rows, shared out among the processes. DDP
    averages gradients over them in the last backward, FSDP in each: no process has room for a whole gradient.
    """
    own = cfg.gradient_accumulation_steps // world.size  # micro-batches of this process
    total = torch.zeros((), device=world.device)
    for i in range(own):
        micro = world.rank * own + i  # its place in the global batch
        rows = range(micro * cfg.batch_size, (micro + 1) * cfg.batch_size)
        x, y = train_batch(tokens, cfg.seed, batch, rows, cfg.block_size)  # (B, T) each
        if cfg.dropout:  # the masks belong to the micro-batch, whichever process works on it
            torch.manual_seed(int(np.random.SeedSequence((cfg.seed, batch, micro)).generate_state(1, np.uint64)[0]))
        with world.no_sync(net) if i < own - 1 else nullcontext():
            loss = world.backward(net, world.move(x), world.move(y), own)  # DDP and FSDP average over the processes
        total += loss / cfg.gradient_accumulation_steps
    return total


@torch.no_grad()
def evaluate(model: GPT, tokens: Tokens, cfg: Config, world: World) -> float | None:
    """Mean loss (nats per token) over the fixed validation windows, which the processes share out among them.

    None, on every process, if one of them was asked to leave meanwhile.
    """
    starts = val_starts(tokens, cfg.block_size, cfg.eval_iters or None)  # (windows)
    B, T = cfg.batch_size, cfg.block_size
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    model.eval()
    for first in range(world.rank * B, len(starts) + world.rank * B, world.size * B):  # equally many on each rank
        if world.agreed(signals.asked()):
            break
        world.at()  # tells the watchdog that this process goes on
        window = torch.from_numpy(tokens.windows(starts[first : first + B], T + 1))  # (n, T + 1), n is B but at the end
        x, y = torch.zeros(B, T, dtype=torch.int64), torch.full((B, T), IGNORE)  # always (B, T): nothing recompiles
        x[: len(window)], y[: len(window)] = window[:, :-1], window[:, 1:]
        with world.autocast():
            total += model(world.move(x), world.move(y), reduction="sum")[1]
    model.train()
    loss, leaving = world.sum(total, signals.asked())
    return None if leaving else loss / (len(starts) * T)


@dataclass
class Run:
    """A run on one of its processes."""

    cfg: Config
    dataset: Dataset
    model: GPT
    net: Any  # the model wrapped for training: by DDP, as CUDA graphs, or as it is
    optimizer: Any
    update: Callable[[], None]  # optimizer.step(), then zero_grad()
    recorder: Recorder
    spikes: Spikes
    clock: Clock
    world: World
    step: int  # steps done
    unlogged: torch.Tensor | None  # training loss of `step` if it is not logged yet (0 at step 0), otherwise None
    val_losses: list[float]  # of the checkpoints in out_dir, then of every validation since (nats per token)


def set_up(cfg: Config, world: World, rollback: Rollback | None) -> Run:
    """Data, checkpoint or weights, model, optimizer and recorder of a run that starts or continues."""
    dataset = open_dataset(cfg.dataset, prepare=True, verify=cfg.verify_data and world.rank == 0)
    compile_model, compile_optimizer, warning = parallel.compilation(cfg.compile, world.device)
    begin = start.find_start(cfg, world, dataset, compile_model, learning_rate, rollback)
    cfg, saved = begin.cfg, begin.saved
    if world.rank == 0:  # until here nothing was moved and no memory taken
        prepare_out_dir(cfg.out_dir, begin.resume_step)

    torch.manual_seed(cfg.seed)
    model = (begin.pretrained or GPT(begin.model_config)).to(world.device)
    model.activation_checkpointing(cfg.activation_checkpointing)
    net = world.parallelize(model, compile_model)
    optimizer = optimizers.build(cfg, model, compile_optimizer)
    if saved:
        checkpoint.restore(saved, model, optimizer)
    optimizer.zero_grad(set_to_none=False)  # a rule makes them views of its flat buffer; else step 1 has each twice
    net, update = graph.captured(cfg, net, optimizer, world)

    recorder = Recorder(dataclasses.asdict(cfg), model, optimizer, world, begin)
    recorder.say(f"{cfg.optimizer}, {model.num_parameters():,} parameters, {world.size} x {world.card}")
    for line in filter(None, [warning, *optimizers.notes(optimizer, cfg), *begin.lines()]):
        recorder.say(line)
    val_losses = world.first([it.val_loss for it in checkpoint.find(cfg.out_dir) if it.val_loss is not None])
    return Run(cfg, dataset, model, net, optimizer, update, recorder, begin.spikes, Clock(begin.seconds, begin.step),
               world, begin.step, begin.unlogged, val_losses)  # fmt: skip


def train(cfg: Config, world: World, rollback: Rollback | None = None) -> Stop | Rollback | None:
    """One run from its data to its figure, or the rest of it. Returns why it ended before its last step, if it did."""
    run = set_up(cfg, world, rollback)
    cfg, optimizer = run.cfg, run.optimizer
    # Step 0 is validated too; and a step after which a signal stopped the run is logged now.
    if run.unlogged is not None and (outcome := after_step(run, run.unlogged)):
        return outcome
    for step in range(run.step + 1, cfg.max_iters + 1):
        world.at(step)
        lr = learning_rate(step, cfg)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)  # torch optimizers whose groups differ (Muon)
        loss = accumulate(run.net, run.dataset.train, run.spikes.batch(step), cfg, world)
        run.update()
        run.step = step
        run.recorder.step()
        signals.between_steps_only()  # until here there was nothing to save, and a signal ended the run at once
        if outcome := after_step(run, loss):
            return outcome
    last_loss = run.val_losses[-1] if run.val_losses else math.nan  # none: resumed at the end, without a validation
    run.recorder.finish(last_loss, run.dataset.manifest.get("val_unigram_entropy", math.nan))
    return ended(run.val_losses)


def after_step(run: Run, loss: torch.Tensor) -> Stop | Rollback | None:
    """Log, validate, save: what is due after a step. Returns why the run must not go on to the next one, if so.

    With a rule of optim/, the host waits for the device only here, and only where something is due.
    """
    cfg, world, step = run.cfg, run.world, run.step
    last = step == cfg.max_iters
    validate = last or step % cfg.eval_interval == 0
    log = validate or step % cfg.log_interval == 0
    train_loss, val_loss, leaving = math.nan, None, False
    if log or (world.size == 1 and signals.asked()):  # several processes agree to leave at a log, where they meet
        train_loss, leaving = world.sum(loss, signals.asked())
        speed = run.clock.steps_per_second(step)
    if validate and not leaving:
        with optimizers.evaluating(run.optimizer):  # Schedule-Free trains other weights than it evaluates
            val_loss = evaluate(run.model, run.dataset.val, cfg, world)
        leaving = val_loss is None
    if log and not leaving:
        run.recorder.write(step, train_loss, val_loss, learning_rate(step, cfg), run.clock.seconds(), speed)
        skipped = int(run.optimizer.skipped)
        if outcome := run.spikes.judge(step, train_loss, skipped, cfg, run.recorder.say, world.first):
            run.recorder.close()
            return outcome

    is_best = val_loss is not None and val_loss < min(filter(math.isfinite, run.val_losses), default=math.inf)
    due = cfg.checkpoint_interval and step % cfg.checkpoint_interval == 0
    if step and (leaving or last or due or is_best or (validate and cfg.always_save_checkpoint)):
        save(run, val_loss, pending_loss=train_loss if leaving and log else None)
    run.val_losses += [val_loss] if val_loss is not None else []
    if leaving:
        world.any(False)  # a barrier: torchrun ends all processes with the first, which may still be saving
        run.recorder.close()
        return stopped(step)
    if log:
        run.clock.restart(step)
    return None


def save(run: Run, val_loss: float | None, pending_loss: float | None) -> None:
    """A checkpoint, by the first process, or by all that have a part of the model. A failure is logged, no more."""
    if run.world.rank and not run.world.sharded:
        return
    write = checkpoint.save_shards if run.world.sharded else checkpoint.save
    with run.clock.paused(), optimizers.evaluating(run.optimizer):
        content = {
            "config": dataclasses.asdict(run.cfg),
            "model_config": dataclasses.asdict(run.model.config),
            "model": run.model.state_dict(keep_vars=run.world.sharded),  # shards.py finds tied weights by identity
            "optimizer": run.optimizer.state_dict(),
            "learned": list(run.optimizer.learned),
            "seconds": run.clock.seconds(),
            "pending_loss": pending_loss,
            "spikes": dataclasses.asdict(run.spikes),
            "metrics": run.recorder.text(),  # a resumed run repairs metrics.csv with it
        }
        try:
            write(run.cfg.out_dir, run.step, val_loss, content, run.cfg.keep_checkpoints)
        except OSError as error:
            run.recorder.say(f"step {run.step} is not saved ({error.strerror}); the checkpoints before it are intact")


@program("train.py")
def main(argv: list[str]) -> int:
    """Exit code 0: done; 2: a mistake; 3: diverged; 4: another process is gone or hangs; 130: stopped by a signal."""
    cfg = optimizers.load_coefficients(parse(Config, argv, check, "train.py"))
    with parallel.session(cfg) as world:
        outcome = train(cfg, world)
        while isinstance(outcome, Rollback):
            outcome = train(cfg, world, outcome)
        return outcome.say("train.py", world.rank) if outcome else 0


if __name__ == "__main__":
    parallel.end(main(sys.argv[1:]))
