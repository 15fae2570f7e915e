"""What an experiment is made of: runs, the records that they leave, and the blocks of the report made of records."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import checkpoint
from runtime.recorder import COLUMNS, commit, final_coefficients, read_metrics
from runtime.settings import read_files

from .compare import mean
from .on_train import saved_last, training_loss

HERE = Path(__file__).parent
ROOT = HERE.parent
RECORDS = HERE / "records"
SCALES = ("laptop", "gpu", "paper")
PAPER: dict[str, Any] = json.loads((HERE / "paper.json").read_text(encoding="utf-8"))  # the numbers it reports

Record = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Training:
    """A run of train.py: config files, and settings on top of them. Its record holds the losses and the coefficients.

    name      unique in its scale; the record is records/SCALE/NAME.json and the run's folder out/SCALE/NAME
    minutes   about what it costs on that scale's machine
    processes GPUs of one machine, each a process of torchrun
    coefficients_from   MADA-FS: the run of the same scale whose final coefficients this one keeps
    curves    whether the record holds the losses and coefficients on the way, or only the last
    on_train  whether it also holds the loss of the last checkpoint on the training split, `training_loss`
    alone     whether it must have the machine for itself
    """

    name: str
    scale: str
    configs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    minutes: float = 2.0
    processes: int = 1
    coefficients_from: Training | None = None
    curves: bool = True
    on_train: bool = False
    alone: bool = False

    @property
    def out_dir(self) -> Path:
        return ROOT / "out" / self.scale / self.name

    @property
    def path(self) -> Path:
        return RECORDS / self.scale / f"{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        """What a record must agree with to be this run's."""
        return {"configs": list(self.configs), "settings": self.all_settings()}

    def ready(self) -> bool:
        """Whether the run that it takes its coefficients from has a record, and coefficients in it."""
        if self.coefficients_from is None:
            return True
        source = read(self.coefficients_from)
        return source is not None and not diverged(source)

    def all_settings(self) -> dict[str, Any]:
        settings = dict(self.settings)
        if self.coefficients_from:
            settings["coefficients_from"] = str(self.coefficients_from.path.relative_to(ROOT))
        return settings

    def differences(self, config: Mapping[str, Any]) -> list[str]:
        """How a run's config differs from what the config files, the settings and the record that it takes its
        coefficients from say now: "seed=2, not 1". Raises RuntimeError if there is no such record."""
        if not self.ready():
            raise RuntimeError(f"{self.name}: {self.coefficients_from and self.coefficients_from.name} has no record")
        asked = read_files([ROOT / path for path in self.configs]) | self.all_settings()
        if self.coefficients_from:
            asked |= final_coefficients(str(self.coefficients_from.path), LEARNABLE)
        asked = {key: value for key, value in shortened(asked).items() if key not in ELSEWHERE}
        there = shortened(config)
        return [f"{key}={there.get(key)}, not {value}" for key, value in asked.items() if there.get(key) != value]

    def left(self) -> Record | None:
        """The config.json of its folder, None if there is none. Raises RuntimeError if it is another run's, or not
        to be read."""
        path = self.out_dir / "config.json"
        if not path.is_file():
            return None
        try:
            about: Record = json.loads(path.read_text(encoding="utf-8"))
            about["config"] = dict(about["config"], max_iters=int(about["config"]["max_iters"]))
        except (ValueError, KeyError, TypeError):
            raise RuntimeError(f"{path} cannot be read: move {self.out_dir} away") from None
        if wrong := self.differences(about["config"]):
            raise RuntimeError(f"{self.out_dir} holds a run with {'; '.join(wrong)}: move it away")
        return about

    def command(self) -> list[str]:
        """The command line, from the repository's root; it goes on from a checkpoint if there is one."""
        program = [sys.executable] if self.processes == 1 else [
            "torchrun", "--standalone", f"--nproc_per_node={self.processes}"
        ]  # fmt: skip
        return [
            *program, "train.py", *self.configs, *(f"--{key}={value}" for key, value in self.all_settings().items()),
            f"--out_dir={self.out_dir.relative_to(ROOT)}", "--init_from=auto",
        ]  # fmt: skip

    def finished(self) -> bool:
        """Whether the run's folder holds all its steps and a checkpoint of the last, with a loss that is a number."""
        try:
            record = distil(self)
        except RuntimeError:
            return False  # `execute` says why
        if record is None or diverged(record):
            return False
        return saved_last(self.out_dir, record["config"]["max_iters"])

    def execute(self, environment: Mapping[str, str]) -> None:
        """Run it to its end, or to where it gives up; its words go to log.txt in its folder.

        Raises RuntimeError: with the last of them if it failed; if the folder is not this run's.
        """
        self.left()
        code = 0 if self.finished() else call(self.command(), self.out_dir / "log.txt", environment, also=DIVERGED)
        record = distil(self, gave_up=code == DIVERGED)
        if record is None or not (diverged(record) or self.finished()):
            raise RuntimeError(f"{self.name}: {self.out_dir} does not hold the last step and its checkpoint")
        if self.on_train and not diverged(record):
            record["final"]["loss_on_train"] = training_loss(self.out_dir)
        write(self.path, record)


@dataclass(frozen=True)
class Computation:
    """A run that needs no train.py: `function(settings)` returns what its record holds."""

    name: str
    scale: str
    experiment: str  # the name of the experiment that it belongs to
    function: Callable[[Mapping[str, Any]], Record]
    settings: Mapping[str, Any] = field(default_factory=dict)
    minutes: float = 1.0
    after: Training | None = None  # the run whose folder it reads
    alone: bool = False  # whether it must have the machine for itself

    @property
    def path(self) -> Path:
        return RECORDS / self.scale / f"{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"settings": dict(self.settings), **({"alone": True} if self.alone else {})}

    def ready(self) -> bool:
        """Whether the run that it reads is finished and its folder here."""
        return self.after is None or self.after.finished()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "experiments", "compute", self.experiment, self.name, f"--scale={self.scale}"]

    def execute(self, environment: Mapping[str, str]) -> None:
        call(self.command(), ROOT / "out" / self.scale / f"{self.name}.log", environment)

    def compute(self) -> None:
        """In this process."""
        facts = {"commit": commit(), "torch": importlib.metadata.version("torch"), "platform": platform.platform()}
        found = self.function(self.settings)
        if not all(map(math.isfinite, found.get("final", {}).values())):
            found = {"final": {"diverged": True}}
        write(self.path, self.identity | facts | found)


@dataclass(frozen=True)
class Evaluation:
    """evaluate.py on the newest checkpoint of a training run; its record holds the rows of the JSON that it writes."""

    of: Training
    datasets: tuple[str, ...]
    protocol: str = "paper"
    minutes: float = 5.0
    alone = False

    @property
    def name(self) -> str:
        return f"{self.of.name}-perplexity"

    @property
    def path(self) -> Path:
        return RECORDS / self.of.scale / f"{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"of": self.of.identity, "datasets": list(self.datasets), "protocol": self.protocol}

    def ready(self) -> bool:
        """Whether the run is finished and its folder here."""
        return self.of.finished()

    def command(self) -> list[str]:
        return [
            sys.executable, "evaluate.py", f"--out_dir={self.of.out_dir.relative_to(ROOT)}", "--which=newest",
            f"--protocol={self.protocol}", f"--dataset={','.join(self.datasets)}",
            f"--json={(self.of.out_dir / 'perplexity.json').relative_to(ROOT)}",
        ]  # fmt: skip

    def finished(self) -> bool:
        """Whether the JSON holds every data set under this protocol, of the newest checkpoint."""
        return self._rows() is not None

    def _rows(self) -> list[Record] | None:
        try:
            content = json.loads((self.of.out_dir / "perplexity.json").read_text(encoding="utf-8"))
            if content["model"]["sha256"] != checkpoint.newest(self.of.out_dir).sha256:
                return None
            found = {row["dataset"]: row for row in content["rows"] if row["protocol"] == self.protocol}
        except (OSError, ValueError, KeyError, TypeError):  # evaluate.py begins it anew
            return None
        return [found[name] for name in self.datasets] if found.keys() >= set(self.datasets) else None

    def execute(self, environment: Mapping[str, str]) -> None:
        if not self.finished():
            call(self.command(), self.of.out_dir / "evaluation.txt", environment)
        rows = self._rows()
        if rows is None:
            raise RuntimeError(f"{self.name}: evaluate.py left out some of {', '.join(self.datasets)}")
        keep = ("dataset", "split", "perplexity", "tokens", "windows", "window", "dtype")
        final = json.loads(self.of.path.read_text(encoding="utf-8")) if self.of.path.is_file() else distil(self.of)
        facts = {key: final[key] for key in ("commit", "parameters")} if final else {}
        write(self.path, self.identity | facts | {"rows": [{key: row[key] for key in keep} for row in rows]})


Run = Training | Computation | Evaluation


RUNNING: set[subprocess.Popen[bytes]] = set()  # commands under way
ENDING = threading.Event()  # set: they are to end, and no other begins
DIVERGED = 3  # train.py's exit code when it gives up


def end_running() -> None:
    """Ask the commands under way to end, each with all that it started; a training saves before."""
    ENDING.set()
    for process in [*RUNNING]:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def call(command: Sequence[str], log: Path, environment: Mapping[str, str], also: int = 0) -> int:
    """Run a command from the repository's root, in a process group of its own; its exit code, 0 or `also`.

    Raises RuntimeError with the end of its log if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        variables = {**os.environ, **environment}
        with subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=variables,
                              process_group=0) as process:  # fmt: skip
            RUNNING.add(process)
            if ENDING.is_set():  # since before it was added
                end_running()
            code = process.wait()
            RUNNING.discard(process)
    if code not in (0, also):
        last = log.read_text(encoding="utf-8").strip().splitlines()[-3:]
        raise RuntimeError(f"{' '.join(command)}\nended with {code}; {log} ends with\n" + "\n".join(last))
    return code


# ---------------------------------------------------------------------------------------------------------- records


def write(path: Path, record: Record) -> None:
    """The record on disk, all of it or the old one; numbers at six significant digits, ValueError for NaN."""
    text = json.dumps(shortened(record), allow_nan=False, separators=(",", ":")) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def shortened(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): shortened(inner) for key, inner in value.items()}
    return [shortened(inner) for inner in value] if isinstance(value, list | tuple) else value


def read(run: Run) -> Record | None:
    """The record of a run; None if there is none or it is that of other settings, those in config files included."""
    if not run.path.is_file():
        return None
    record: Record = json.loads(run.path.read_text(encoding="utf-8"))
    asked = shortened(run.identity)
    if {key: record.get(key) for key in asked} != asked:
        return None
    if isinstance(run, Training):
        return record if run.ready() and not run.differences(record["config"]) else None
    return None if isinstance(run, Evaluation) and read(run.of) is None else record


def records(runs: Sequence[Run]) -> dict[str, Record]:
    """{name: record} of those runs that have one."""
    found = {run.name: read(run) for run in runs}
    return {name: record for name, record in found.items() if record is not None}


def diverged(record: Record) -> bool:
    """Whether the run gave up, or ended at a loss that is no number: its `final` says no more than that."""
    return "diverged" in record.get("final", {})


def parted(found: Mapping[str, Record]) -> tuple[dict[str, Record], str]:
    """The records of runs that got to their end, and a sentence on the others, "" if there are none."""
    lost = [f"{name} (step {record['final']['step']:g})" if "step" in record["final"] else name
            for name, record in found.items() if diverged(record)]  # fmt: skip
    words = f"Diverged, and left out of everything below: {', '.join(lost)}." if lost else ""
    return {name: record for name, record in found.items() if not diverged(record)}, words


# What a record may say otherwise than the config files: where a run was made, how, and who looked on.
ELSEWHERE = ("out_dir", "init_from", "device", "compile", "wandb_log", "wandb_project", "wandb_run_name")
LEARNABLE = ("beta1", "beta2", "beta3", "rho", "c", "gamma", "eps")
FACTS = ("commit", "versions", "platform", "device", "dtype", "processes", "parameters")
POINTS = 100  # of a curve in a record
LAST = 0.1  # the final training loss is the mean over this fraction of the steps


def distil(run: Training, gave_up: bool = False) -> Record | None:
    """The record of a training run from what it left in its folder; None if it did not get to its end.

    `gave_up`: it diverged before. Raises RuntimeError if the folder holds another run, or what cannot be read.
    """
    about = run.left()
    path = run.out_dir / "metrics.csv"
    if about is None or not path.is_file():
        return None
    try:
        rows = [{key: number(text) for key, text in row.items()} for row in read_metrics(path)]
    except ValueError:
        raise RuntimeError(f"{path} cannot be read: move {run.out_dir} away") from None
    steps = about["config"]["max_iters"]
    record = {
        **run.identity,
        **{key: about.get(key) for key in FACTS},
        "config": {key: value for key, value in about["config"].items() if key not in ("out_dir", "init_from")},
    }
    if gave_up:
        return record | {"final": {"diverged": True, "step": rows[-1]["step"] if rows else 0}}
    if not rows or rows[-1]["step"] != steps:
        return None
    coefficients = [name for name in rows[0] if name not in COLUMNS and not name.startswith("h_")]
    late = measured([row for row in rows if (row["step"] or 0) > (1 - LAST) * steps], "train_loss")
    final = {
        "val_loss": rows[-1]["val_loss"],
        "best_val_loss": min(measured(rows, "val_loss"), default=None),
        "train_loss": mean(late) if late else None,
        **{name: rows[-1][name] for name in coefficients},
    }
    if None in final.values():  # the last step is always validated
        return record | {"final": {"diverged": True, "step": steps}}
    curves = {"curves": thinned(rows, steps, coefficients)} if run.curves else {}
    return {**record, "seconds": rows[-1]["seconds"], "final": final, **curves}


Row = dict[str, float | None]


def number(text: str) -> float | None:
    """A cell; None for what was not measured, and for the loss of a step whose gradient was refused, NaN."""
    return value if text and math.isfinite(value := float(text)) else None


def measured(rows: Sequence[Row], column: str) -> list[float]:
    return [value for row in rows if (value := row[column]) is not None]


def thinned(rows: Sequence[Row], steps: int, coefficients: Sequence[str]) -> dict[str, list[float | None]]:
    """About POINTS rows and every validation, as columns; the training loss is the mean since the point before."""
    curves: dict[str, list[float | None]] = {name: [] for name in ("step", "train_loss", "val_loss", *coefficients)}
    since: list[Row] = []
    last_part = -1
    for row in rows:
        since.append(row)
        part = int(row["step"] or 0) * POINTS // steps
        if part > last_part or row["val_loss"] is not None:
            last_part = part
            for name in ("step", "val_loss", *coefficients):
                curves[name].append(row[name])
            losses = measured(since, "train_loss")
            curves["train_loss"].append(mean(losses) if losses else None)
            since = []
    return curves


# ------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Text:
    words: str


@dataclass(frozen=True)
class Table:
    """`rows` of cells as text, `header` above them; the paper's numbers stand in a column of their own."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """`draw(figure)` fills a matplotlib figure; `caption` says what is to be seen."""

    name: str
    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (8.0, 4.0)  # inches


Block = Text | Table | Figure


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper, or a question of our own.

    runs(scale)           what it needs; () where that scale is not its own
    show(scale, records)  blocks of the report from {name: record}, never called without a record
    exact                 done as in the paper, at no smaller scale: a laptop is enough
    with_diverged         whether show() takes records of runs that diverged, too
    in_all                whether `run all` makes its runs; otherwise it is asked for by its name
    """

    name: str
    title: str
    question: str
    runs: Callable[[str], Sequence[Run]]
    show: Callable[[str, dict[str, Record]], Sequence[Block]]
    exact: bool = False
    with_diverged: bool = False
    in_all: bool = True
