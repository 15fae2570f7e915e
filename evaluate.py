"""Perplexity of a run, or of GPT-2's released weights, under named protocols (perplexity.py says what they are).

    python evaluate.py --out_dir=out/gpt2_mada
    python evaluate.py --weights=gpt2 --protocol=lm_eval --dataset=wikitext2,lambada_openai
    torchrun --standalone --nproc_per_node=8 evaluate.py --out_dir=out/gpt2_mada --batch_size=32
    python evaluate.py --help

Prints a table and writes all of it, with what a reader needs to repeat it, as JSON beside the checkpoint, row by row:
an interruption loses one. A later evaluation of the same checkpoint adds its rows to that file, and replaces those that
it measured again.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from data import DataError, open_dataset, texts
from data.corpora import ROWS
from evaluation import perplexity
from evaluation.perplexity import Stream, Subject, Windows
from runtime import parallel
from runtime.checkpoint import CheckpointError
from runtime.parallel import World
from runtime.settings import ConfigError, HelpRequested, parse

PROTOCOLS = ("paper", "strided", "lm_eval")
STANDARD = ("openwebtext", "wikitext2", "lambada", "lambada_openai")  # what `all` means for GPT-2's tokens


@dataclass(frozen=True)
class Config:
    """What to measure, on what, and how."""

    out_dir: Annotated[str, "folder of the run"] = "out/quickstart"
    which: Annotated[Literal["best", "newest"], "the checkpoint with the lowest validation loss, or the last"] = "best"
    weights: Annotated[
        str | None, "instead of a run: a folder in Hugging Face's format, or its name in DATA_MIRROR (gpt2, ...)"
    ] = None
    protocol: Annotated[str, "paper, strided, lm_eval, several with commas, or all"] = "all"
    dataset: Annotated[
        str, "wikitext2, wikitext103, lambada, lambada_openai (their test split), a prepared set (its val split); "
        "several with commas; all: openwebtext and those of GPT-2's tokens, or the run's own"
    ] = "all"  # fmt: skip
    split: Annotated[str | None, "train, val or test of these sets; None: as said there"] = None
    window: Annotated[int | None, "inputs of a window (tokens); None: the model's block_size"] = None
    stride: Annotated[int | None, "of `strided`: a window begins every so many (tokens); None: half a window"] = None
    batch_size: Annotated[int, "windows that a process works on at a time (count)"] = 8
    json: Annotated[str | None, "file for the results; None: beside the checkpoint, or in the folder of weights"] = None
    device: Annotated[str, "cpu, cuda or cuda:N; auto is cuda where there is one"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], "of matmuls; auto: bfloat16 on a GPU that has it, as in training"
    ] = "float32"
    dist_timeout: Annotated[int, "a process that waits longer for the others gives up (seconds)"] = 1800


def check(cfg: Config) -> Iterator[tuple[str, str]]:
    """(fields concerned, what is wrong and what is allowed) for each impossible value."""
    for name in ("window", "stride", "batch_size", "dist_timeout"):
        value = getattr(cfg, name)
        if value is not None and value < 1:
            yield name, f"{name}={value} must be 1 or more"
    if cfg.window and cfg.stride and cfg.stride > cfg.window:
        yield "window stride", f"stride={cfg.stride} leaves out text between windows of window={cfg.window}"
    if wrong := [name for name in cfg.protocol.split(",") if name not in (*PROTOCOLS, "all")]:
        yield "protocol", f"protocol={wrong[0]!r} must be {', '.join(PROTOCOLS)} or all"
    if cfg.split not in (None, "train", "val", "test"):
        yield "split", f"split={cfg.split!r} must be train, val or test"
    if cfg.json is not None and not Path(cfg.json).absolute().parent.is_dir():
        yield "json", f"json={cfg.json!r}: there is no folder {str(Path(cfg.json).parent)!r}"
    yield from parallel.device_problems(cfg.device)


def cut(protocol: str, dataset: str, split: str, subject: Subject, window: int, stride: int) -> tuple[Stream, Windows]:
    """The stream and windows of one data set under one protocol.

    Raises:
        DataError: the set is not there, has another tokenizer, or the protocol says nothing about it.
    """
    tokenizer = subject.tokenizer
    if dataset not in ROWS:  # prepared: already a stream of ids, whatever the protocol
        prepared = open_dataset(dataset, prepare=True)
        if protocol == "lm_eval":
            raise DataError(f"lm_eval has no task for {dataset}: choose --protocol=paper or strided")
        same = prepared.tokenizer == tokenizer.name and prepared.vocab_size == tokenizer.vocab_size
        if not same:
            raise DataError(f"{dataset} has {prepared.tokenizer} tokens ({prepared.vocab_size}), the model was trained "
                            f"on {tokenizer.name} tokens ({tokenizer.vocab_size}): choose another data set")
        stream = perplexity.token_stream(prepared.split(split), tokenizer)
    elif tokenizer.end_of_text is None:
        raise DataError(f"{dataset} needs GPT-2's tokens, the model has {tokenizer.name} tokens: evaluate it on its own"
                        " data set" + (f" (--dataset={subject.dataset})" if subject.dataset else ""))
    elif protocol == "lm_eval":
        rows = texts(dataset, split)
        if dataset.startswith("lambada"):
            return perplexity.last_word_stream(rows, tokenizer, window)
        return perplexity.wikitext_stream(rows, tokenizer, window)
    else:
        read = perplexity.row_stream if protocol == "paper" else perplexity.joined_stream
        stream = read(texts(dataset, split), tokenizer)
    windows = (perplexity.paper_windows(stream.tokens, window) if protocol == "paper"
               else perplexity.strided_windows(stream.tokens, window, stride))
    if not len(windows.starts):
        raise DataError(f"{dataset}/{split} has {stream.tokens} tokens, too few for window={window}")
    return stream, windows


def measure(protocol: str, dataset: str, cfg: Config, subject: Subject, world: World) -> dict[str, Any]:
    """One row of results; `perplexity` is that of what `per` says. Raises DataError like `cut`."""
    begun = time.perf_counter()
    split = cfg.split or ("test" if dataset in ROWS else "val")
    window = cfg.window or subject.model.config.block_size
    stride = (cfg.stride or math.ceil(window / 2)) if protocol == "strided" else None
    stream, windows = cut(protocol, dataset, split, subject, window, stride or window)
    last_word = protocol == "lm_eval" and dataset.startswith("lambada")
    label = f"{protocol} {dataset}/{split}"
    scores = perplexity.score(subject.model, stream, windows, cfg.batch_size, world, label, look=last_word)
    nll, tokens = math.fsum(scores.nll), int(windows.scored.sum())  # nats; fsum: exact, in any order
    if last_word:
        per, count = "last word", len(scores.nll)
    elif protocol == "lm_eval":
        per, count = "word", stream.words
    else:
        per, count = "token", tokens
    seconds = time.perf_counter() - begun
    return {
        "protocol": protocol,
        "dataset": dataset,
        "split": split,
        "perplexity": math.exp(min(nll / count, 700.0)),  # a broken model's would not fit a float
        "per": per,
        "accuracy": float(scores.greedy.mean()) if last_word else None,
        "nats": nll,
        "tokens": tokens,
        "words": stream.words,
        "windows": len(windows.starts),
        "window": window,
        "stride": stride,
        "dtype": str(world.dtype).removeprefix("torch."),
        "tokens_per_second": tokens / seconds,
    }


def evaluate(cfg: Config, world: World) -> list[dict[str, Any]]:
    """Every row that the config asks for; the first process prints the table and writes the JSON."""
    subject = perplexity.open_subject(cfg.out_dir, cfg.which, cfg.weights)
    block_size = subject.model.config.block_size
    if (cfg.window or 0) > block_size:
        raise ConfigError(f"window={cfg.window} is more than the model reads at a time, {block_size} tokens")
    if (cfg.stride or 0) > (cfg.window or block_size):
        raise ConfigError(f"stride={cfg.stride} leaves out text between windows of {cfg.window or block_size} tokens")
    subject.model.to(world.device)
    record = Path(cfg.json) if cfg.json else subject.record
    if not os.access(record if record.exists() else record.parent, os.W_OK):
        raise ConfigError(f"{record} cannot be written: name another file with --json")
    protocols = PROTOCOLS if "all" in cfg.protocol.split(",") else tuple(dict.fromkeys(cfg.protocol.split(",")))
    datasets = tuple(dict.fromkeys(cfg.dataset.split(",")))
    if "all" in datasets:
        own = (subject.dataset,) if subject.dataset else ()
        datasets = own if subject.tokenizer.end_of_text is None else tuple(dict.fromkeys((*STANDARD, *own)))

    rows: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}  # by reason
    for dataset in datasets:
        for protocol in protocols:
            try:
                rows.append(measure(protocol, dataset, cfg, subject, world))
                if world.rank == 0:
                    write(record, subject, rows)
            except DataError as error:
                left_out.setdefault(str(error), []).append(f"{protocol} {dataset}")
    if not rows:
        raise DataError("; ".join(left_out) or "nothing to measure: name a data set with --dataset")
    if world.rank == 0:
        for reason, left in left_out.items():
            print(f"evaluate.py: left out {', '.join(left)}: {reason}", file=sys.stderr)
        print(f"{record.parent if cfg.json is None else cfg.weights or cfg.out_dir}: "
              f"{subject.model.num_parameters():,} parameters, {subject.facts.get('checkpoint', 'weights')}")
        print(table(rows))
        print(f"all of it is in {record}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of aligned text."""
    columns = ("protocol", "data set", "perplexity", "per", "accuracy", "tokens", "words", "window", "stride", "tok/s")
    cells = [columns] + [
        (row["protocol"], f"{row['dataset']}/{row['split']}", f"{row['perplexity']:.4f}", row["per"],
         "" if row["accuracy"] is None else f"{row['accuracy']:.2%}", f"{row['tokens']:,}", f"{row['words']:,}",
         f"{row['window']}", f"{row['stride'] or ''}", f"{row['tokens_per_second']:,.0f}")
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = (0, 1, 3)  # text; numbers stand at the right
    lines = ["  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in
                       enumerate(zip(line, widths, strict=True))).rstrip() for line in cells]  # fmt: skip
    return "\n".join(lines)


def write(path: Path, subject: Subject, rows: list[dict[str, Any]]) -> None:
    """Add rows to the file of this very model, or begin it; a reader never sees a half. Raises ConfigError."""
    def key(row: dict[str, Any]) -> tuple:
        return tuple(row.get(name) for name in ("protocol", "dataset", "split", "window", "stride", "dtype"))

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        earlier = found["rows"] if found["model"]["sha256"] == subject.facts["sha256"] else []
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    measured = {key(row) for row in rows}
    content = {
        "model": subject.facts | {"parameters": subject.model.num_parameters()},
        "torch": torch.__version__,
        "rows": [row for row in earlier if key(row) not in measured] + rows,
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written ({error.strerror}): name another file with --json") from None


def main(argv: list[str]) -> int:
    """The command line. Exit code 0: done; 2: a mistake to put right; 130: interrupted."""
    try:
        cfg = parse(Config, argv, check, "evaluate.py")
        world = parallel.join(cfg.device, cfg.dtype, cfg.dist_timeout)
        try:
            evaluate(cfg, world)
        finally:
            parallel.leave()
    except HelpRequested as text:
        print(text)
    except (ConfigError, DataError, CheckpointError) as error:
        parallel.complain("evaluate.py", error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    parallel.end(main(sys.argv[1:]))
