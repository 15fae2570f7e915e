"""What an experiment is made of: runs, the records that they leave, and the blocks of the report made of records."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import COLUMNS, commit, read_metrics

from .compare import mean

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
    """

    name: str
    scale: str
    configs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    minutes: float = 2.0
    processes: int = 1
    coefficients_from: str | None = None
    curves: bool = True
    on_train: bool = False

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
        """Whether the run that it takes its coefficients from has a record."""
        return self.coefficients_from is None or self._source().is_file()

    def _source(self) -> Path:
        return RECORDS / self.scale / f"{self.coefficients_from}.json"

    def all_settings(self) -> dict[str, Any]:
        settings = dict(self.settings)
        if self.coefficients_from:
            settings["coefficients_from"] = str(self._source().relative_to(ROOT))
        return settings

    def command(self) -> list[str]:
        """The command line, from the repository's root; it goes on from a checkpoint if there is one."""
        resume = any(self.out_dir.glob("ckpt_*.json"))
        program = [sys.executable] if self.processes == 1 else [
            "torchrun", "--standalone", f"--nproc_per_node={self.processes}"
        ]  # fmt: skip
        return [
            *program, "train.py", *self.configs, *(f"--{key}={value}" for key, value in self.all_settings().items()),
            f"--out_dir={self.out_dir.relative_to(ROOT)}", *(["--init_from=resume"] if resume else []),
        ]  # fmt: skip

    def finished(self) -> bool:
        """Whether the run's folder holds all its steps."""
        return (self.out_dir / "config.json").is_file() and distil(self) is not None

    def execute(self, environment: Mapping[str, str]) -> None:
        """Run it to its end; its words go to log.txt in its folder. Raises RuntimeError with the last of them."""
        if not self.finished():
            call(self.command(), self.out_dir / "log.txt", environment)
        record = distil(self)
        if record is None:
            raise RuntimeError(f"{self.name}: {self.out_dir} is not a finished run with the settings {self.settings}")
        if self.on_train:
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

    @property
    def path(self) -> Path:
        return RECORDS / self.scale / f"{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"settings": dict(self.settings)}

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
        write(self.path, self.identity | facts | self.function(self.settings))


@dataclass(frozen=True)
class Evaluation:
    """evaluate.py on the newest checkpoint of a training run; its record holds the rows of the JSON that it writes."""

    of: Training
    datasets: tuple[str, ...]
    protocol: str = "paper"
    minutes: float = 5.0

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
        """Whether the JSON holds every data set under this protocol."""
        return self._rows() is not None

    def _rows(self) -> list[Record] | None:
        path = self.of.out_dir / "perplexity.json"
        if not path.is_file():
            return None
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        found = {row["dataset"]: row for row in rows if row["protocol"] == self.protocol}
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


RUNNING: set[subprocess.Popen[bytes]] = set()  # commands under way: who ends this process ends them too


def call(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Run a command from the repository's root. Raises RuntimeError with the end of its log if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        variables = {**os.environ, **environment}
        with subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=variables) as process:
            RUNNING.add(process)
            code = process.wait()
            RUNNING.discard(process)
    if code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-3:]
        raise RuntimeError(f"{' '.join(command)}\nended with {code}; {log} ends with\n" + "\n".join(last))


# ---------------------------------------------------------------------------------------------------------- records


def write(path: Path, record: Record) -> None:
    """The record on disk, all of it or the old one; numbers at six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(shortened(record), indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    temporary.replace(path)


def shortened(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): shortened(inner) for key, inner in value.items()}
    return [shortened(inner) for inner in value] if isinstance(value, list | tuple) else value


def read(run: Run) -> Record | None:
    """The record of a run; None if there is none or it is that of other settings."""
    if not run.path.is_file():
        return None
    record: Record = json.loads(run.path.read_text(encoding="utf-8"))
    asked = shortened(run.identity)
    return record if {key: record.get(key) for key in asked} == asked else None


def records(runs: Sequence[Run]) -> dict[str, Record]:
    """{name: record} of those runs that have one."""
    found = {run.name: read(run) for run in runs}
    return {name: record for name, record in found.items() if record is not None}


FACTS = ("commit", "versions", "platform", "device", "dtype", "processes", "parameters")
POINTS = 100  # of a curve in a record
LAST = 0.1  # the final training loss is the mean over this fraction of the steps


def distil(run: Training) -> Record | None:
    """The record of a training run from what it left in its folder; None if it did not get to its end."""
    about = json.loads((run.out_dir / "config.json").read_text(encoding="utf-8"))
    for key, value in run.all_settings().items():
        if (there := about["config"][key]) != value:
            raise RuntimeError(f"{run.out_dir} holds a run with {key}={there}, not {value}: move it away")
    path = run.out_dir / "metrics.csv"
    if not path.is_file():
        return None
    rows = [{k: float(v) if v else None for k, v in row.items()} for row in read_metrics(path)]
    steps = about["config"]["max_iters"]
    if not rows or rows[-1]["step"] != steps or rows[-1]["val_loss"] is None:
        return None
    coefficients = [name for name in rows[0] if name not in COLUMNS and not name.startswith("h_")]
    late = [row for row in rows if (row["step"] or 0) > (1 - LAST) * steps]
    return {
        **run.identity,
        **{key: about.get(key) for key in FACTS},
        "config": {key: value for key, value in about["config"].items() if key not in ("out_dir", "init_from")},
        "seconds": rows[-1]["seconds"],
        "final": {
            "val_loss": rows[-1]["val_loss"],
            "best_val_loss": min(measured(rows, "val_loss")),
            "train_loss": mean(measured(late, "train_loss")),
            **{name: rows[-1][name] for name in coefficients},
        },
        **({"curves": thinned(rows, steps, coefficients)} if run.curves else {}),
    }


EVALUATION_BATCHES = 200  # nanoGPT's, and so the paper's


def training_loss(out_dir: Path) -> float:
    """Mean loss (nats per token) of the newest checkpoint over 200 batches of its training split, dropout off.

    The windows are spread evenly over the split: the same ones for every run.
    """
    import torch  # with what needs it, seconds of start-up that most commands can spare

    from data import open_dataset, val_starts
    from perplexity import open_subject

    config = json.loads((out_dir / "config.json").read_text(encoding="utf-8"))["config"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_subject(str(out_dir), "newest").model.to(device)
    tokens, B, T = open_dataset(config["dataset"]).train, config["batch_size"], config["block_size"]
    return mean_loss(model, tokens, val_starts(tokens, T, EVALUATION_BATCHES * B), B)


def mean_loss(model: Any, tokens: Any, starts: Any, batch_size: int) -> float:
    """Mean loss (nats per token), dropout off, of the windows of block_size that begin there."""
    import numpy as np
    import torch

    model.eval()
    T, device, total = model.config.block_size, next(model.parameters()).device, 0.0
    with torch.no_grad():
        for part in np.split(starts, range(batch_size, len(starts), batch_size)):
            window = torch.from_numpy(tokens.windows(part, T + 1)).to(device)  # (B, T + 1)
            total += float(model(window[:, :-1], window[:, 1:], reduction="sum")[1])
    return total / (len(starts) * T)


Row = dict[str, float | None]


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
    """

    name: str
    title: str
    question: str
    runs: Callable[[str], Sequence[Run]]
    show: Callable[[str, dict[str, Record]], Sequence[Block]]
    exact: bool = False
