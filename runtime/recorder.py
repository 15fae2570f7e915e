"""The record and the display of a run: config.json, metrics.csv, a progress bar or plain lines, and optionally wandb.

The columns of metrics.csv are step, tokens, seconds, train_loss, val_loss, lr, grad_norm, each coefficient, and the
hypergradient of each learned coefficient as h_<name>. An empty cell was not measured at that step. Where param groups
have coefficients of their own, these are the means, and <name>[0], <name>[1], ... those of the groups; where tensors
have, <name>[0%], ..., <name>[100%] are quantiles over them, and tensors.csv has all of them at each validation.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import platform
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from data import manifest
from model import peak_flops
from optim.values import key_of
from runtime.movement import Movement, describe, movement
from runtime.out_dir import set_aside
from runtime.records import COLUMNS, parse_metrics, rows_until
from runtime.settings import ConfigError

ROOT = Path(__file__).parents[1]
PERCENT = (0, 25, 50, 75, 100)  # quantiles over tensors
Row = dict[str, Any]


def write_config(out_dir: Path, config: Mapping[str, Any], **facts: Any) -> None:
    """Write config.json: the resolved config, the commit, the versions, and other facts. Raises OSError."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "numpy", "tiktoken", "datasets", "wandb"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    content = {"config": config, "commit": commit(), "versions": versions, "platform": platform.platform(), **facts}
    path = out_dir / "config.json"
    if path.is_dir():
        print(f"config.json is a folder: it is in {set_aside(out_dir, [path])}, and written anew")
    manifest.write_json(path, content)


def commit() -> str | None:
    """The checked-out commit, with "-dirty" if tracked files differ from it (except experiments/records). Outside a git
    checkout, the value of NANOMADA_COMMIT."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)experiments/records")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("NANOMADA_COMMIT")


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class MetricsFile:
    """metrics.csv, and its text in memory. Rows are written without buffering; while the disk is full, later.

    Args:
        saved: the text that a resumed run goes on from, of its checkpoint. A file that does not begin with it is moved
            away and written anew. "": a new file.
    """

    def __init__(self, path: Path, columns: list[str], saved: str = "") -> None:
        rows = parse_metrics(saved)
        if rows:  # the rule of a resumed run may have got another coefficient since
            columns = [*rows[0], *(name for name in columns if name not in rows[0])]
        self._path, self._columns, self._text = path, columns, [_csv(columns, rows, header=True)]
        self._unwritten, self._warned = self._text[0].encode(), False
        self._file: IO[bytes] | None = None
        there = path.read_bytes() if path.is_file() else b""
        if there.startswith(self._unwritten):
            os.truncate(path, len(self._unwritten))  # needs no space
            self._unwritten = b""
        elif self._unwritten.startswith(there) and (path.is_file() or not os.path.lexists(path)):
            self._unwritten = self._unwritten[len(there) :]
        else:
            previous = set_aside(path.parent, [path])
            print(f"{path.name} is not what the checkpoint goes on from: it is in {previous}, and written anew")
        self.flush()

    @property
    def text(self) -> str:
        return "".join(self._text)

    def write(self, row: Row) -> None:
        self._text.append(_csv(self._columns, [row]))
        self._unwritten += self._text[-1].encode()
        self.flush()

    def flush(self) -> None:
        try:
            self._file = self._file or self._path.open("ab", buffering=0)
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._warned = False
        except OSError as error:
            if not self._warned:
                what = f"{self._path.name}: {error.strerror}"
                print(f"{what}; the run continues and keeps its rows in memory", file=sys.stderr)
            self._warned = True

    def close(self) -> None:
        self.flush()
        if self._unwritten:
            rows = self._unwritten.count(b"\n")
            print(f"metrics.csv lacks the last {rows} lines; a run that resumes makes them again", file=sys.stderr)
        if self._file:
            self._file.close()


class Wandb:
    """Weights & Biases. Its errors never stop a run: they are reported once, and wandb is not used any more.

    wandb is called from a separate thread, so that it does not block the training. At the end it has PATIENCE seconds
    to send the remaining rows.
    """

    PATIENCE = 60.0

    def __init__(self, out_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()  # None ends the thread
        self._thread = threading.Thread(target=self._work, args=(out_dir, config, resume), daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        if self._thread.is_alive():
            self._rows.put(dict(row))

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join(self.PATIENCE)
        if self._thread.is_alive():
            print(f"wandb: not finished {self.PATIENCE:g} seconds after the end of the run, some rows may be missing "
                  "there; metrics.csv is complete", file=sys.stderr)  # fmt: skip

    def _work(self, out_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        try:
            import wandb

            id_file = out_dir / "wandb_id"  # with which a resumed run continues the same wandb run
            run_id = id_file.read_text().strip() if resume and id_file.exists() else secrets.token_hex(4)
            run = wandb.init(project=config["wandb_project"], name=config["wandb_run_name"], id=run_id, resume="allow",
                             config=dict(config), dir=str(out_dir))  # fmt: skip
            id_file.write_text(run_id + "\n")
            while (row := self._rows.get()) is not None:
                run.log({name: value for name, value in row.items() if value is not None}, step=int(row["step"] or 0))
            run.finish()
        except Exception as error:
            print(f"wandb: {type(error).__name__}: {error}; the run continues without it", file=sys.stderr)


class Progress:
    """A tqdm bar if stderr is a terminal, otherwise a line on stdout for every row."""

    def __init__(self, start: int, stop: int) -> None:
        self._bar = tqdm(initial=start, total=stop, unit="step", dynamic_ncols=True, smoothing=0.05, disable=None)
        self._shown: dict[str, str | None] = {}
        self.step, self.close = self._bar.update, self._bar.close

    def show(self, row: Row, shown: dict[str, str | None]) -> None:
        """Show a row; the bar keeps the last value of what was not measured."""
        if self._bar.disable:
            words = ", ".join(f"{name} {text}" for name, text in shown.items() if text)
            self.say(f"step {row['step']}/{self._bar.total}: {words}")
        else:
            self._shown = {name: text or self._shown.get(name) for name, text in shown.items()}
            self._bar.set_postfix_str(" ".join(f"{name} {text}" for name, text in self._shown.items() if text))

    def say(self, line: str) -> None:
        """Print a line; above the bar, if there is one."""
        self._bar.write(line)
        sys.stdout.flush()


class Clock:
    """The seconds of a run, including those before a resume, and its training speed, without validations and saves."""

    def __init__(self, seconds: float, step: int) -> None:
        self._began = time.perf_counter() - seconds
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._since = step, time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no training."""
        begun = time.perf_counter()
        yield
        self._since += time.perf_counter() - begun

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def steps_per_second(self, step: int) -> float:
        """Since `restart`."""
        return (step - self._step) / (time.perf_counter() - self._since)


class Recorder:
    """All of the above for one run. On ranks other than 0 it does nothing.

    Args:
        config: the resolved config.
        optimizer: its `coefficients`, `hypergradients` and `grad_norm` are columns. The column of a learned learning
            rate is `lr_learned`; `lr` is that of the schedule.
        begin: the Start of runtime/start.py.
    """

    def __init__(self, config: Mapping[str, Any], model: Any, optimizer: Any, world: Any, begin: Any) -> None:
        self._active, self._optimizer = world.rank == 0, optimizer
        if not self._active:
            return
        out_dir = self._out_dir = Path(config["out_dir"])
        resumed = begin.resume_step is not None
        try:
            write_config(out_dir, config, processes=world.size, device=world.card, dtype=str(world.dtype),
                         parameters=model.num_parameters(), skipped=begin.spikes.skipped)  # fmt: skip
        except OSError as error:  # of a full disk: a resumed run goes on
            if not resumed:
                raise
            print(f"config.json: {error.strerror}; the run continues with that of before", file=sys.stderr)
        sizes = ("gradient_accumulation_steps", "batch_size", "block_size")
        self._tokens_per_step = math.prod(config[name] for name in sizes)
        peak = peak_flops(world.device, world.dtype)
        self._mfu_per_speed = model.flops_per_token() / (peak * world.size) if peak else None
        self._scope = config.get("scope", "global") if optimizer.learned else "global"
        hypergradients = [f"h_{name}" for name in optimizer.hypergradients]
        columns = [*COLUMNS, *self._coefficients(), *hypergradients, *self._by_owner()]
        path, saved = out_dir / "metrics.csv", ""
        if resumed:
            saved = begin.saved["metrics"] if "metrics" in begin.saved else rows_until(path, begin.step)
        self._metrics = MetricsFile(path, columns, saved)
        self._tensors: MetricsFile | None = None
        if self._scope == "tensor":
            names = {id(p): name for name, p in model.named_parameters()}
            self._names = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
            path, columns = out_dir / "tensors.csv", ["step", "parameter", *map(key_of, optimizer.learned)]
            try:
                before = rows_until(path, begin.step) if resumed else ""
            except ConfigError:  # damaged: MetricsFile moves it away
                before = ""
            self._tensors = MetricsFile(path, columns, before)
        self._wandb = Wandb(out_dir, config, begin.saved is not None) if config["wandb_log"] else None
        self._progress = Progress(begin.step, config["max_iters"])

    def _coefficients(self) -> dict[str, float]:
        return {key_of(k): value for k, value in self._optimizer.coefficients.items()}

    def _by_owner(self) -> dict[str, float]:
        """Of each learned coefficient, the values of groups, or quantiles of those of tensors."""
        if self._scope == "global":
            return {}
        owners, found = self._optimizer.coefficients_by_owner, dict[str, float]()
        for k in self._optimizer.learned:
            values = [own[k] for own in owners]
            if self._scope == "tensor":
                parts: dict[Any, float] = {f"{percent}%": np.percentile(values, percent).item() for percent in PERCENT}
            else:
                parts = dict(enumerate(values))
            found |= {f"{key_of(k)}[{part}]": value for part, value in parts.items()}
        return found

    def step(self) -> None:
        if self._active:
            self._progress.step()

    def text(self) -> str:
        """What metrics.csv holds, for the checkpoint."""
        return self._metrics.text if self._active else ""

    def say(self, line: str) -> None:
        if self._active:
            self._progress.say(line)

    def write(self, step: int, train_loss: float, val_loss: float | None, lr: float, seconds: float,
              steps_per_second: float) -> None:  # fmt: skip
        """Record and show a row; at step 0 the validation loss is the only measurement."""
        if not self._active:
            return
        coefficients, hypergradients = self._coefficients(), self._optimizer.hypergradients
        norm = self._optimizer.grad_norm
        row: Row = {
            "step": step,
            "tokens": step * self._tokens_per_step,
            "seconds": round(seconds, 3),
            "train_loss": train_loss if step else None,
            "val_loss": val_loss,
            "lr": lr if step else None,
            "grad_norm": None if norm is None or not step else float(norm),
            **coefficients,
            **{f"h_{name}": None if math.isnan(value) else value for name, value in hypergradients.items()},
            **self._by_owner(),
        }
        self._metrics.write(row)
        if self._tensors is not None and val_loss is not None:
            for name, own in zip(self._names, self._optimizer.coefficients_by_owner, strict=True):
                values = {key_of(k): value for k, value in own.items()}
                self._tensors.write({"step": step, "parameter": name, **values})
        if self._wandb is not None:
            self._wandb.write(row)
        speed = steps_per_second * self._tokens_per_step  # tokens per second
        texts = {
            "loss": f"{train_loss:.4f}" if step else None,
            "val": None if val_loss is None else f"{val_loss:.4f}",
            "tok/s": f"{speed:,.0f}" if speed else None,
            "MFU": f"{speed * self._mfu_per_speed:.1%}" if self._mfu_per_speed and speed else None,
        }
        learned = map(key_of, hypergradients)
        self._progress.show(row, texts | {name: f"{coefficients[name]:#.4g}" for name in learned})

    def finish(self, val_loss: float, entropy: float) -> None:
        """Close the record of a completed run and draw its figure; `entropy` is the corpus's, of single tokens."""
        if not self._active:
            return
        if moved := self._movements():
            self.say(f"learned coefficients: {describe(moved)}")
        self.say(f"validation loss {val_loss:.4f} nats per token; unigram entropy of the corpus {entropy:.4f}")
        self.close()
        try:
            from runtime.figure import draw  # importing matplotlib takes a second

            print(f"the run is in {self._out_dir}, its figure in {draw(self._out_dir)}")
        except Exception as error:  # a figure that fails must not change the exit code of a completed run
            print(f"the run is in {self._out_dir}, its figure failed: {error}")

    def _movements(self) -> dict[str, Movement]:
        """How far each learned coefficient moved, by its column in metrics.csv."""

        def curve(rows: list[dict[str, str]], column: str) -> dict[int, float]:
            return {int(row["step"]): float(row[column]) for row in rows if row.get(column)}

        rows, found = parse_metrics(self._metrics.text), {}
        for name in self._optimizer.hypergradients:
            column = key_of(name)
            if moved := movement(curve(rows, column), curve(rows, f"h_{name}")):
                found[column] = moved
        return found

    def close(self) -> None:
        if self._active:
            self._metrics.close()
            if self._tensors is not None:
                self._tensors.close()
            self._progress.close()
            if self._wandb is not None:
                self._wandb.close()
