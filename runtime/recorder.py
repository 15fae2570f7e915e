"""What a run leaves behind and shows: config.json, metrics.csv, a progress bar or plain lines, wandb if asked for.

metrics.csv has one header: step, tokens, seconds, train_loss, val_loss, lr, grad_norm, then each coefficient by name,
then each learned coefficient's hypergradient as h_<name>. An empty cell was not measured at that step.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import queue
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from model import peak_flops
from runtime.settings import ConfigError

ROOT = Path(__file__).parents[1]
RUN_FILES = (".pt", ".shards", ".json", ".csv", ".png", "wandb", "wandb_id")  # how the names of what a run writes end
COLUMNS = ("step", "tokens", "seconds", "train_loss", "val_loss", "lr", "grad_norm")
Row = dict[str, float | int | None]


def write_config(out_dir: Path, config: Mapping[str, Any], **facts: Any) -> None:
    """config.json: the resolved config, the commit, the versions, and any other facts about the run."""
    packages = ("torch", "numpy", "tiktoken", "datasets", "wandb")
    versions = {"python": platform.python_version()} | {name: _version(name) for name in packages}
    content = {"config": config, "commit": commit(), "versions": versions, "platform": platform.platform(), **facts}
    _replace(out_dir / "config.json", json.dumps(content, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit that runs, with "-dirty" where tracked files differ from it (but for the records that experiments
    leave). Outside a git checkout, as in a container: what NANOMADA_COMMIT says, if anything."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)experiments/records")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("NANOMADA_COMMIT")


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv as text; a last line cut short by a crash is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def final_coefficients(source: str, names: Collection[str]) -> dict[str, float]:
    """The coefficients that a finished run ended with.

    Args:
        source: the run's folder, or its record (experiments/records).
        names: those of the rule that is to start with them; it must be the run's own.
    Raises:
        ConfigError: there is no such run or record, it is not finished, or it has other coefficients.
    """
    path = Path(source).expanduser()
    try:
        about = json.loads((path / "config.json" if path.is_dir() else path).read_text(encoding="utf-8"))
        last = read_metrics(path / "metrics.csv")[-1] if path.is_dir() else about["final"]
        config = about.get("config", {})
        if path.is_dir() and int(last["step"]) != (steps := config["max_iters"]):
            raise ConfigError(f"coefficients_from={source!r} is at step {last['step']} of {steps}: let it finish")
        found = {name: float(value) for name, value in last.items() if value not in (None, "")
                 and name not in COLUMNS and "loss" not in name and not name.startswith(("h_", "lr"))}  # fmt: skip
    except ConfigError:
        raise
    except (OSError, IndexError, KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"coefficients_from={source!r} is neither the out_dir nor the record of a run") from None
    if found.keys() != set(names):
        rule = f" ({config['optimizer']})" if "optimizer" in config else ""
        raise ConfigError(f"coefficients_from={source!r} is a run of another rule{rule}, of {', '.join(found) or 'no'} "
                          f"coefficients, not {', '.join(names) or 'none'}")  # fmt: skip
    return found


def prepare_out_dir(folder: str, keep: int | None) -> None:
    """Make a run's folder and see that it can be written; what the run does not go on from goes to FOLDER/previous-N.

    Args:
        keep: None for a new run, which moves an old one away; a step for one that goes on after it, which moves only
            checkpoints beyond it (damaged, or of a future that is given up), so that none is taken for its newest.
    Raises:
        ConfigError: the folder cannot be made or written.
    """
    out_dir = Path(folder)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe = out_dir / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
        if keep is None:
            old = [path for path in out_dir.iterdir() if path.name.endswith(RUN_FILES)]
        else:
            stems = {path.stem for path in out_dir.glob("ckpt_*") if path.suffix in (".pt", ".shards")
                     and int(re.sub(r"\D", "", path.stem) or 0) > keep}  # fmt: skip
            old = [path for path in out_dir.glob("ckpt_*") if path.name.partition(".")[0] in stems]
        if old:
            earlier = [re.fullmatch(r"previous-(\d+)", path.name) for path in out_dir.iterdir()]
            previous = out_dir / f"previous-{1 + max((int(found[1]) for found in earlier if found), default=0)}"
            previous.mkdir()
            for path in old:
                path.rename(previous / path.name)
            print(f"{out_dir} held {'a run already' if keep is None else 'later checkpoints'}: now in {previous}")
    except OSError as error:
        raise ConfigError(f"out_dir={folder!r} cannot be written ({error.strerror}): choose another") from None


def _replace(path: Path, text: str) -> None:
    """The new text or the old one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class MetricsFile:
    """metrics.csv, one row at a time, each on its way to the disk when `write` returns.

    Args:
        resume_step: None starts a new file; a step keeps the rows up to it, so that what a resumed run measures again
            is not there twice.
    """

    def __init__(self, path: Path, columns: list[str], resume_step: int | None) -> None:
        rows: list[dict[str, str]] = []
        if resume_step is not None and path.exists():
            rows = [row for row in read_metrics(path) if int(row["step"]) <= resume_step]
        if rows:  # learning another coefficient after a resume adds a column and loses none
            columns = [*rows[0], *(name for name in columns if name not in rows[0])]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _replace(path, text.getvalue())
        self._file = path.open("ab", buffering=0)
        self._columns = columns
        self._late = b""  # what a full disk did not take yet
        self._warned = False

    def write(self, row: Row) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
        self._late += text.getvalue().encode()
        self._flush()

    def _flush(self) -> None:
        try:
            while self._late:
                self._late = self._late[self._file.write(self._late) :]
            self._warned = False
        except OSError as error:
            if not self._warned:
                print(f"metrics.csv: {error.strerror}; the run goes on, its rows wait in memory", file=sys.stderr)
            self._warned = True

    def close(self) -> None:
        self._flush()
        self._file.close()


class Wandb:
    """The second sink. Nothing that goes wrong in wandb stops a run: it is reported once and then left alone.

    wandb is called from a thread of its own, so that a slow network does not hold up the training either. At the end it
    has PATIENCE seconds for the rows that wait.
    """

    PATIENCE = 60.0

    def __init__(self, out_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()  # None is the end
        self._thread = threading.Thread(target=self._work, args=(out_dir, config, resume), daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        if self._thread.is_alive():
            self._rows.put(dict(row))

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join(self.PATIENCE)
        if self._thread.is_alive():
            late = f"not done {self.PATIENCE:g} seconds after the end, and left alone: metrics.csv is complete"
            print(f"wandb: {late}", file=sys.stderr)

    def _work(self, out_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        try:
            import wandb

            id_file = out_dir / "wandb_id"  # a resumed run goes on in the same wandb run
            run_id = id_file.read_text().strip() if resume and id_file.exists() else secrets.token_hex(4)
            run = wandb.init(
                project=config["wandb_project"],
                name=config["wandb_run_name"],
                id=run_id,
                resume="allow",
                config=dict(config),
                dir=str(out_dir),
            )
            id_file.write_text(run_id + "\n")
            while (row := self._rows.get()) is not None:
                run.log({name: value for name, value in row.items() if value is not None}, step=int(row["step"] or 0))
            run.finish()
        except Exception as error:
            print(f"wandb: {type(error).__name__}: {error}; the run goes on without it", file=sys.stderr)


class Progress:
    """A tqdm bar where stderr is a terminal, otherwise a plain line on stdout for every row."""

    def __init__(self, start: int, stop: int) -> None:
        self._bar: Any = None
        self._stop = stop
        self._shown: dict[str, str | None] = {}
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(initial=start, total=stop, unit="step", dynamic_ncols=True, smoothing=0.05)

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def show(self, row: Row, shown: dict[str, str | None]) -> None:
        """One row, in the order of `shown`; in the bar, what was not measured now keeps its last value."""
        if self._bar is not None:
            self._shown = {name: text or self._shown.get(name) for name, text in shown.items()}
            self._bar.set_postfix_str(" ".join(f"{name} {text}" for name, text in self._shown.items() if text))
        else:
            words = ", ".join(f"{name} {text}" for name, text in shown.items() if text)
            print(f"step {row['step']}/{self._stop}: {words}", flush=True)

    def say(self, line: str) -> None:
        """A line that does not tear the bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Clock:
    """Seconds that a run has taken, and its speed since the last row; validating and saving are no training speed."""

    def __init__(self, seconds: float, step: int) -> None:
        self._before, self._began = seconds, time.perf_counter()  # `seconds` of the processes before this one
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._since = step, time.perf_counter()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def steps_per_second(self, step: int) -> float:
        """Since `restart`."""
        return (step - self._step) / (time.perf_counter() - self._since)


class Recorder:
    """All of the above for one run: what the trainer talks to. On other processes than the first it does nothing.

    Args:
        config: the resolved config, for config.json and for wandb.
        model: a GPT, for its size and its FLOPs.
        optimizer: its `coefficients`, `hypergradients` and `grad_norm` are columns of every row. A learned learning
            rate is `lr_learned`; `lr` is the schedule's.
        world: the processes and their device.
        begin: where the run begins (a Start of runtime/start.py).
    """

    def __init__(self, config: Mapping[str, Any], model: Any, optimizer: Any, world: Any, begin: Any) -> None:
        self._active, self._optimizer = world.rank == 0, optimizer
        if not self._active:
            return
        out_dir = self._out_dir = Path(config["out_dir"])
        write_config(out_dir, config, processes=world.size, device=world.card, dtype=str(world.dtype),
                     parameters=model.num_parameters(), skipped=begin.spikes.skipped)  # fmt: skip
        resume_step = begin.step if begin.saved else None
        sizes = ("gradient_accumulation_steps", "batch_size", "block_size")
        self._tokens_per_step = math.prod(config[name] for name in sizes)
        peak = peak_flops(world.device, world.dtype)
        self._mfu_per_speed = model.flops_per_token() / (peak * world.size) if peak else None
        columns = [*COLUMNS, *self._coefficients(), *(f"h_{name}" for name in optimizer.hypergradients)]
        self._metrics = MetricsFile(out_dir / "metrics.csv", columns, resume_step)
        self._wandb = Wandb(out_dir, config, resume_step is not None) if config["wandb_log"] else None
        self._progress = Progress(resume_step or 0, config["max_iters"])

    def _coefficients(self) -> dict[str, float]:
        return {"lr_learned" if k == "lr" else k: value for k, value in self._optimizer.coefficients.items()}

    def step(self) -> None:
        if self._active:
            self._progress.step()

    def say(self, line: str) -> None:
        if self._active:
            self._progress.say(line)

    def write(self, step: int, train_loss: float, val_loss: float | None, lr: float, seconds: float,
              steps_per_second: float) -> None:  # fmt: skip
        """A row and the optimizer's part of it to every sink; at step 0 there is only a validation loss."""
        if not self._active:
            return
        coefficients, hypergradients = self._coefficients(), self._optimizer.hypergradients
        norm = self._optimizer.grad_norm
        speed = steps_per_second * self._tokens_per_step  # tokens per second
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
        }
        self._metrics.write(row)
        if self._wandb is not None:
            self._wandb.write(row)
        shown = {"loss": row["train_loss"], "val": val_loss}
        texts = {name: None if loss is None else f"{loss:.4f}" for name, loss in shown.items()}
        texts["tok/s"] = f"{speed:,.0f}" if step else None
        texts["MFU"] = f"{speed * self._mfu_per_speed:.1%}" if self._mfu_per_speed and step else None
        learned = ["lr_learned" if name == "lr" else name for name in hypergradients]
        self._progress.show(row, texts | {name: f"{coefficients[name]:#.4g}" for name in learned})

    def finish(self, val_loss: float, entropy: float) -> None:
        """The last line and the picture of a run that got to its end; `entropy` is the corpus's, of single tokens."""
        if not self._active:
            return
        self.say(f"validation loss {val_loss:.4f} nats per token; unigram entropy of the corpus {entropy:.4f}")
        self.close()
        try:
            from runtime.figure import draw  # matplotlib is a second of start-up that only the end needs

            print(f"the run is in {self._out_dir}, its picture in {draw(self._out_dir)}")
        except Exception as error:  # no picture is worth the exit code of a finished run
            print(f"the run is in {self._out_dir}, no picture: {error}")

    def close(self) -> None:
        if self._active:
            self._metrics.close()
            self._progress.close()
            if self._wandb is not None:
                self._wandb.close()
