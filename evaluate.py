"""Perplexity of a run, or of GPT-2's released weights, under named protocols (evaluation/perplexity.py defines them).

    python evaluate.py --out_dir=out/gpt2_mada
    python evaluate.py --weights=gpt2 --protocol=lm_eval --dataset=wikitext2,lambada_openai
    torchrun --standalone --nproc_per_node=8 evaluate.py --out_dir=out/gpt2_mada --batch_size=32
    python evaluate.py --help

Says what it will measure and about how long that takes, prints each row when it is measured, and writes it, with what
is needed to repeat it, as JSON beside the checkpoint: an interruption loses one row. A later evaluation of the same
checkpoint adds its rows and replaces those measured again.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from cli import program

import torch
from tqdm import tqdm

from data import DataError, open_dataset, texts
from data.corpora import ROWS
from data.manifest import read_json, write_json
from evaluation import perplexity
from evaluation.perplexity import Stream, Subject, Windows
from model import GPT
from runtime import parallel
from runtime.parallel import World
from runtime.settings import ConfigError, Count, Place, parse

PROTOCOLS = ("paper", "strided", "lm_eval")
STANDARD = ("openwebtext", "wikitext2", "lambada", "lambada_openai")  # `all` data sets for GPT-2's tokens


@dataclass(frozen=True)
class Config:
    """What to measure, on what, and how."""

    out_dir: Annotated[Place, "folder of the run"] = "out/quickstart"
    which: Annotated[Literal["best", "newest"], "the checkpoint with the lowest validation loss, or the last"] = "best"
    weights: Annotated[
        Place | None, "instead of a run: a folder in Hugging Face's format, or its name in DATA_MIRROR (gpt2, ...)"
    ] = None
    protocol: Annotated[
        str, "paper, strided, lm_eval, several with commas, or all, which reads a text four times (strided twice): of "
        "GPT-2's sets 18 million tokens: with the 124M model minutes on a GPU, many hours on a CPU"
    ] = "all"  # fmt: skip
    dataset: Annotated[
        str, "wikitext2, wikitext103, lambada, lambada_openai (their test split), a prepared set (its val split); "
        "several with commas; all: openwebtext and those of GPT-2's tokens, or the run's own"
    ] = "all"  # fmt: skip
    split: Annotated[str | None, "train, val or test of these sets; None: as said there"] = None
    window: Annotated[Count | None, "inputs of a window (tokens); None: the model's block_size"] = None
    stride: Annotated[Count | None, "of `strided`: from a window to the next (tokens); None: half a window"] = None
    batch_size: Annotated[Count, "windows that a process works on at a time (count)"] = 8
    json: Annotated[Place | None, "file for the results; None: beside the checkpoint, or in the weights' folder"] = None
    device: Annotated[str, "cpu, cuda or cuda:N; auto is cuda where there is one"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], "of matmuls; auto: bfloat16 on a GPU that has it, as in training"
    ] = "float32"
    dist_timeout: Annotated[Count, "a process that waits longer for the others gives up (seconds)"] = 1800


def check(cfg: Config) -> Iterator[tuple[str, str]]:
    """(fields concerned, what is wrong and what is allowed) for each impossible value."""
    if wrong := [name for name in cfg.protocol.split(",") if name not in (*PROTOCOLS, "all")]:
        yield "protocol", f"protocol={wrong[0]!r} must be {', '.join(PROTOCOLS)} or all"
    if cfg.split not in (None, "train", "val", "test"):
        yield "split", f"split={cfg.split!r} must be train, val or test"
    yield from parallel.device_problems(cfg.device)


class Job(NamedTuple):
    """One row to measure: a protocol on a split of a data set."""

    protocol: str
    dataset: str
    split: str
    window: int  # tokens
    stride: int | None  # of `strided`
    stream: Stream
    windows: Windows

    def __str__(self) -> str:
        return f"{self.protocol} {self.dataset}/{self.split}"

    def flops(self, model: GPT) -> float:
        """Floating-point operations of the matmuls: blocks for what is read, the head for what is scored."""
        head = 2 * model.config.vocab_size * model.config.n_embd
        blocks = model.flops_per_token(self.window) / 3 - head  # forward only
        return blocks * float(self.windows.lengths.sum()) + head * float(self.windows.scored.sum())


def prepare(protocol: str, dataset: str, cfg: Config, subject: Subject) -> Job:
    """The windows of one data set under one protocol.

    Raises:
        DataError: the set is missing, has another tokenizer, or is not defined for the protocol.
    """
    tokenizer = subject.tokenizer
    split = cfg.split or ("test" if dataset in ROWS else "val")
    window = cfg.window or subject.model.config.block_size
    stride = (cfg.stride or math.ceil(window / 2)) if protocol == "strided" else None
    if dataset not in ROWS:  # prepared: a stream of ids already
        prepared = open_dataset(dataset, prepare=True)
        if protocol == "lm_eval":
            raise DataError(f"lm_eval has no task for {dataset}: choose --protocol=paper or strided")
        theirs = prepared.tokenizer
        if (theirs.name, theirs.vocab_size) != (tokenizer.name, tokenizer.vocab_size):
            raise DataError(f"{dataset} has {theirs.name} tokens ({theirs.vocab_size}), the model was trained "
                            f"on {tokenizer.name} tokens ({tokenizer.vocab_size}): choose another data set")
        stream = perplexity.token_stream(prepared.split(split), tokenizer)
    elif tokenizer.end_of_text is None:
        raise DataError(f"{dataset} needs GPT-2's tokens, the model has {tokenizer.name} tokens: evaluate it on its own"
                        " data set" + (f" (--dataset={subject.dataset})" if subject.dataset else ""))
    elif protocol == "lm_eval":
        read = perplexity.last_word_stream if dataset.startswith("lambada") else perplexity.wikitext_stream
        return Job(protocol, dataset, split, window, stride, *read(texts(dataset, split), tokenizer, window))
    else:
        cut = perplexity.row_stream if protocol == "paper" else perplexity.joined_stream
        stream = cut(texts(dataset, split), tokenizer)
    windows = (perplexity.strided_windows(stream.tokens, window, stride) if stride
               else perplexity.paper_windows(stream.tokens, window))
    if not len(windows.starts):
        raise DataError(f"{dataset}/{split} has {stream.tokens} tokens, too few for window={window}")
    return Job(protocol, dataset, split, window, stride, stream, windows)


def measure(job: Job, cfg: Config, subject: Subject, world: World, label: str) -> dict[str, Any]:
    """One row of results; `perplexity` is per what `per` says."""
    begun = time.perf_counter()
    last_word = job.protocol == "lm_eval" and job.dataset.startswith("lambada")
    scores = perplexity.score(subject.model, job.stream, job.windows, cfg.batch_size, world, label, look=last_word)
    nll, tokens = math.fsum(scores.nll), int(job.windows.scored.sum())  # nats; fsum does not depend on the order
    if last_word:
        per, count = "last word", len(scores.nll)
    else:
        per, count = ("word", job.stream.words) if job.protocol == "lm_eval" else ("token", tokens)
    return {name: getattr(job, name) for name in ("protocol", "dataset", "split", "window", "stride")} | {
        "perplexity": math.exp(min(nll / count, 700.0)),  # a larger one would overflow
        "per": per,
        "accuracy": float(scores.greedy.mean()) if last_word else None,
        "nats": nll,
        "tokens": tokens,
        "words": job.stream.words,
        "windows": len(job.windows.starts),
        "dtype": str(world.dtype).removeprefix("torch."),
        "tokens_per_second": tokens / (time.perf_counter() - begun),
    }


def speed(job: Job, cfg: Config, subject: Subject, world: World) -> float:
    """Floating-point operations per second of all processes together, from one window each, or one batch if fast."""
    for batch_size in (1, cfg.batch_size):
        some = job._replace(windows=Windows(*(column[: batch_size * world.size] for column in job.windows)))
        begun = time.perf_counter()
        perplexity.score(subject.model, some.stream, some.windows, batch_size, world)
        seconds = time.perf_counter() - begun
        if world.any(seconds > 1):
            break
    return some.flops(subject.model) / seconds


def plan(cfg: Config, subject: Subject) -> tuple[list[Job], list[str]]:
    """What to measure, and lines on what is left out. Raises DataError: nothing is left."""
    protocols = PROTOCOLS if "all" in cfg.protocol.split(",") else tuple(dict.fromkeys(cfg.protocol.split(",")))
    datasets = dict.fromkeys(cfg.dataset.split(","))
    if "all" in datasets:
        own = (subject.dataset,) if subject.dataset else ()
        datasets = dict.fromkeys(own if subject.tokenizer.end_of_text is None else (*STANDARD, *own))
    jobs: list[Job] = []
    left_out: dict[str, list[str]] = {}  # by reason
    for dataset, protocol in itertools.product(datasets, protocols):
        try:
            jobs.append(prepare(protocol, dataset, cfg, subject))
        except DataError as error:
            left_out.setdefault(str(error), []).append(f"{protocol} {dataset}")
    if not jobs:
        raise DataError("; ".join(left_out) or "nothing to measure: name a data set with --dataset")
    return jobs, [f"left out {', '.join(names)}: {reason}" for reason, names in left_out.items()]


def evaluate(cfg: Config, world: World) -> list[dict[str, Any]]:
    """Every row that the config asks for; the first process prints and writes them."""
    subject = perplexity.open_subject(cfg.out_dir, cfg.which, cfg.weights)
    model, block_size = subject.model, subject.model.config.block_size
    if (cfg.window or 0) > block_size:
        raise ConfigError(f"window={cfg.window} is more than the model reads at a time, {block_size} tokens")
    if (cfg.stride or 0) > (cfg.window or block_size):
        raise ConfigError(f"stride={cfg.stride} leaves out text between windows of {cfg.window or block_size} tokens")
    record = Path(cfg.json) if cfg.json else subject.record
    earlier_rows(record, subject)  # refuses a record that cannot be written before it takes time

    def say(line: str) -> None:
        if world.rank == 0:
            print(line, flush=True)

    say(f"{cfg.weights or cfg.out_dir}: {model.num_parameters():,} parameters, "
        f"{subject.facts.get('checkpoint', 'weights')}, {world.size} x {world.card}")
    jobs, left_out = plan(cfg, subject)
    model.to(world.device)
    if world.rank == 0:
        for line in left_out:
            print(f"evaluate.py: {line}", file=sys.stderr)
    for job in jobs:
        say(f"to measure: {job}, {job.windows.scored.sum():,} tokens")
    left = sum(job.flops(model) for job in jobs)
    rate = speed(jobs[0], cfg, subject, world)
    say(f"this takes about {tqdm.format_interval(left / rate)} (hours:minutes:seconds)")
    rows: list[dict[str, Any]] = []
    for i, job in enumerate(jobs, 1):
        begun = time.perf_counter()
        label = f"{job} ({i} of {len(jobs)}, about {tqdm.format_interval(left / rate)} left in all)"
        rows.append(measure(job, cfg, subject, world, label))
        left, rate = left - job.flops(model), job.flops(model) / (time.perf_counter() - begun)
        if world.rank == 0:
            write(record, subject, rows)
        say(aligned(rows[-1], header=i == 1))
    say(f"all of it is in {record}")
    return rows


def aligned(row: dict[str, Any], header: bool) -> str:
    """A row as a line of a table, under the header if asked for."""
    form = "{:<8}  {:<22}  {:>12}  {:<9}  {:>8}  {:>11}  {:>11}  {:>6}  {:>6}  {:>9}"
    names = ("protocol", "data set", "perplexity", "per", "accuracy", "tokens", "words", "window", "stride", "tok/s")
    cells = (row["protocol"], f"{row['dataset']}/{row['split']}", f"{row['perplexity']:.4f}", row["per"],
             "" if row["accuracy"] is None else f"{row['accuracy']:.2%}", f"{row['tokens']:,}", f"{row['words']:,}",
             row["window"], row["stride"] or "", f"{row['tokens_per_second']:,.0f}")  # fmt: skip
    return "\n".join(form.format(*line).rstrip() for line in ([names] if header else []) + [cells])


def earlier_rows(path: Path, subject: Subject) -> list[dict[str, Any]]:
    """The rows that the record holds of this very model. Raises ConfigError: it cannot be read or written, or is not a
    record of this program."""
    try:
        if not os.access(path.parent, os.W_OK):
            raise OSError(errno.EACCES, "no such folder, or no permission")
        found = read_json(path)
        return found["rows"] if found["model"]["sha256"] == subject.facts["sha256"] else []
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): name another file with --json") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{path} is not a record of evaluate.py: name another file with --json") from None


def write(path: Path, subject: Subject, rows: list[dict[str, Any]]) -> None:
    """Add rows to the record of this very model, or begin it. Raises ConfigError like `earlier_rows`."""
    def key(row: dict[str, Any]) -> tuple:
        return tuple(row.get(name) for name in ("protocol", "dataset", "split", "window", "stride", "dtype"))

    measured = {key(row) for row in rows}
    content = {
        "model": subject.facts | {"parameters": subject.model.num_parameters()},
        "torch": torch.__version__,
        "rows": [row for row in earlier_rows(path, subject) if key(row) not in measured] + rows,
    }
    try:
        write_json(path, content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): name another file with --json") from None


@program("evaluate.py")
def main(argv: list[str]) -> None:
    """The command line."""
    cfg = parse(Config, argv, check, "evaluate.py")
    world = parallel.join(cfg.device, cfg.dtype, cfg.dist_timeout)
    try:
        evaluate(cfg, world)
    finally:
        parallel.leave()


if __name__ == "__main__":
    parallel.end(main(sys.argv[1:]))
