"""What an experiment is made of: runs, the records that they leave, and the blocks of the report made of records."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from cli import DIVERGED, Mistake

from data.manifest import replacing
from runtime.optimizers import adapt
from runtime.recorder import commit
from runtime.settings import read_files
from study.page import Block
from study.runner import Runner
from study.runs import Result, Row, coefficient_columns, differences, measured, read_result
from study.statistics import mean

from .training_loss import saved_last, training_loss

HERE = Path(__file__).parent
ROOT = HERE.parent
RECORDS = HERE / "records"
SCALES = ("laptop", "gpu", "paper")
PAPER: dict[str, Any] = json.loads((HERE / "paper.json").read_text(encoding="utf-8"))  # the numbers it reports
FACTS = ("commit", "versions", "platform", "device", "dtype", "processes", "parameters")
POINTS = 100  # of a curve in a record

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What leaves one record, records/SCALE/NAME.json.

    name      unique in its scale
    minutes   about what it costs on that scale's machine
    alone     whether it must have the machine for itself
    after     the training run whose folder it reads
    """

    name: str
    scale: str
    minutes: float = field(default=2.0, kw_only=True)
    alone: bool = field(default=False, kw_only=True)
    after: Training | None = field(default=None, kw_only=True)

    @property
    def path(self) -> Path:
        return RECORDS / self.scale / f"{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        """What a record must agree with to be this run's."""
        raise NotImplementedError

    def record(self) -> Record | None:
        """Its record; None if there is none, or if that is of other settings."""
        if not self.path.is_file():
            return None
        record: Record = json.loads(self.path.read_text(encoding="utf-8"))
        asked = rounded(self.identity)
        return record if {key: record.get(key) for key in asked} == asked else None

    def ready(self) -> bool:
        """Whether the run that it builds on is finished and its folder here."""
        return self.after is None or self.after.finished()

    def finished(self) -> bool:
        """Whether its record can be made without running it."""
        return False

    def left(self) -> Result | None:
        """What a training left in its folder; None if it did not begin. Raises Mistake if that is another run, or
        unreadable."""
        return None

    def set_aside(self) -> None:
        """Move its record, and the folder of a training, to NAME.previous, replacing what was set aside before."""
        for path in (self.path, getattr(self, "out_dir", None)):
            if path is not None and path.exists():
                earlier = path.with_name(f"{path.name}.previous")
                if earlier.is_dir():
                    shutil.rmtree(earlier)
                path.replace(earlier)

    def command(self) -> list[str]:
        """The command line, from the repository's root."""
        raise NotImplementedError

    def execute(self, runner: Runner) -> None:
        """Run it to its end and write its record. Raises Mistake, with the end of its log, if it failed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Training(Run):
    """A run of train.py: config files, and settings on top of them. Its record holds the losses and the coefficients.

    Its folder is out/SCALE/NAME, with what it printed in log.txt.

    processes GPUs of one machine, each a process of torchrun
    coefficients_from   MADA-FS: the run of the same scale whose final coefficients this one keeps
    curves    whether the record holds the losses and coefficients on the way, or only the last
    on_train  whether it also holds `training_loss`, of the last checkpoint on the training split
    """

    configs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1
    coefficients_from: Training | None = None
    curves: bool = True
    on_train: bool = False

    @property
    def folder(self) -> str:
        """Of the run, from the repository's root."""
        return f"out/{self.scale}/{self.name}"

    @property
    def out_dir(self) -> Path:
        return ROOT / self.folder

    @property
    def identity(self) -> dict[str, Any]:
        return {"configs": list(self.configs), "settings": self.all_settings()}

    def record(self) -> Record | None:
        """None also if the config files say something else now."""
        record = super().record()
        return record if record and self.ready() and not self.differences(record["config"]) else None

    def ready(self) -> bool:
        """Whether the run that it takes its coefficients from has a record, and coefficients in it."""
        if self.coefficients_from is None:
            return True
        source = self.coefficients_from.record()
        return source is not None and not diverged(source)

    def all_settings(self) -> dict[str, Any]:
        settings = dict(self.settings)
        if self.coefficients_from:
            settings["coefficients_from"] = str(self.coefficients_from.path.relative_to(ROOT))
        return settings

    def differences(self, config: Mapping[str, Any]) -> list[str]:
        """How a run's config differs from what the config files, the settings and the record that it takes its
        coefficients from say now: "seed=2, not 1". Raises Mistake if there is no such record."""
        asked = read_files([ROOT / path for path in self.configs], self.all_settings(), adapt)
        if self.coefficients_from:
            source = self.coefficients_from.record()
            if source is None:
                raise Mistake(f"{self.name}: {self.coefficients_from.name} has no record")
            own = asked["coefficients"]
            asked["coefficients"] = own | {name: value for name, value in source["final"].items() if name in own}
        return differences(rounded(asked), rounded(config))

    def left(self) -> Result | None:
        if not (self.out_dir / "config.json").is_file():
            return None
        try:
            result = read_result(self.out_dir)
        except Mistake:
            raise Mistake(f"{self.out_dir} cannot be read: move it away") from None
        if wrong := self.differences(result.facts["config"]):
            raise Mistake(f"{self.out_dir} holds a run with {'; '.join(wrong)}: move it away")
        return result

    def command(self) -> list[str]:
        """It goes on from a checkpoint if there is one."""
        program = [sys.executable] if self.processes == 1 else [
            "torchrun", "--standalone", f"--nproc_per_node={self.processes}"
        ]  # fmt: skip
        return [
            *program, "train.py", *self.configs, *(f"--{key}={value}" for key, value in self.all_settings().items()),
            f"--out_dir={self.folder}", "--init_from=auto",
        ]  # fmt: skip

    def finished(self) -> bool:
        """Whether its folder holds all its steps and a checkpoint of the last, with a loss that is a number."""
        try:
            record = self.made_record()
        except Mistake:
            return False  # `execute` says why
        if record is None or diverged(record):
            return False
        return saved_last(self.out_dir, record["config"]["max_iters"])

    def execute(self, runner: Runner) -> None:
        """Run it to its end, or to where it diverges, and write its record.

        Raises Mistake: with the last lines of its log if it failed; if the folder is not this run's.
        """
        self.left()
        code = 0 if self.finished() else runner.call(self.command(), self.out_dir / "log.txt", (0, DIVERGED))
        record = self.made_record(gave_up=code == DIVERGED)
        if record is None or not (diverged(record) or self.finished()):
            raise Mistake(f"{self.name}: {self.out_dir} does not hold the last step and its checkpoint")
        if self.on_train and not diverged(record):
            record["final"]["loss_on_train"] = training_loss(self.out_dir)
        write(self.path, record)

    def made_record(self, gave_up: bool = False) -> Record | None:
        """The record of what it left in its folder; None if it did not get to its end.

        `gave_up`: it diverged before. Raises Mistake if the folder holds another run, or is unreadable.
        """
        result = self.left()
        if result is None or not result.rows:
            return None
        config, step = result.facts["config"], result.rows[-1]["step"]
        if step != config["max_iters"] and not gave_up:
            return None
        record = {
            **self.identity,
            **{key: result.facts.get(key) for key in FACTS},
            "config": {key: value for key, value in config.items() if key not in ("out_dir", "init_from")},
        }
        if gave_up or not result.final:  # the last step is always validated
            return record | {"final": {"diverged": True, "step": step}}
        final = {**result.final}
        curves = {"curves": thinned(result.rows, config["max_iters"])} if self.curves else {}
        return {**record, "seconds": final.pop("seconds"), "final": final, **curves}


@dataclass(frozen=True)
class Computation(Run):
    """A run that needs no train.py: `function(settings)` returns what its record holds.

    Its record counts only beside that of the run `after`.
    """

    function: Callable[[Mapping[str, Any]], Record]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        return {"settings": dict(self.settings), **({"alone": True} if self.alone else {})}

    def record(self) -> Record | None:
        return super().record() if self.after is None or self.after.record() else None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "experiments", "compute", self.name, f"--scale={self.scale}"]

    def execute(self, runner: Runner) -> None:
        runner.call(self.command(), ROOT / "out" / self.scale / f"{self.name}.log")

    def compute(self) -> None:
        """In this process."""
        facts = {"commit": commit(), "torch": importlib.metadata.version("torch"), "platform": platform.platform()}
        found = self.function(self.settings)
        if not all(map(math.isfinite, found.get("final", {}).values())):
            found = {"final": {"diverged": True}}
        write(self.path, self.identity | facts | found)


def written_by(*command: str, to: str) -> Any:
    """What a program of this repository writes to the JSON file that its option `to` names. What it prints is in the
    log of the computation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        subprocess.run([sys.executable, *command, f"{to}={path}"], cwd=ROOT, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------- records


def write(path: Path, record: Record) -> None:
    """The record on disk, all of it or the old one; numbers at six significant digits, ValueError for NaN."""
    text = json.dumps(rounded(record), allow_nan=False, separators=(",", ":")) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def rounded(value: Any) -> Any:
    """The same with numbers at six significant digits and lists for tuples."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def thinned(rows: Sequence[Row], steps: int) -> dict[str, list[float | None]]:
    """About POINTS rows and every validation, as columns; the training loss is the mean since the point before."""
    coefficients = coefficient_columns(rows[0])
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


def records(runs: Sequence[Run]) -> dict[str, Record]:
    """{name: record} of those runs that have one."""
    return {run.name: record for run in runs if (record := run.record()) is not None}


def diverged(record: Record) -> bool:
    """Whether the run gave up, or ended at a loss that is not finite: its `final` says no more than that."""
    return "diverged" in record.get("final", {})


def without_diverged(found: Mapping[str, Record]) -> tuple[dict[str, Record], str]:
    """The records of runs that got to their end, and a sentence on the others, "" if there are none."""
    lost = [f"{name} (step {record['final']['step']:g})" if "step" in record["final"] else name
            for name, record in found.items() if diverged(record)]  # fmt: skip
    words = f"Diverged, and left out of everything below: {', '.join(lost)}." if lost else ""
    return {name: record for name, record in found.items() if not diverged(record)}, words


def by_seed(records: Mapping[str, Record], prefix: str = "") -> dict[str, dict[int, Record]]:
    """{name: {seed: record}} of the records named PREFIX/NAME-SEED, in their order."""
    found: dict[str, dict[int, Record]] = {}
    for path, record in records.items():
        name, _, seed = path.removeprefix(prefix).rpartition("-")
        if path.startswith(prefix):
            found.setdefault(name, {})[int(seed)] = record
    return found


def final_losses(found: Mapping[str, Mapping[int, Record]], kind: str) -> dict[str, dict[int, float]]:
    """{name: {seed: a final value}} of `by_seed`."""
    return {name: {seed: record["final"][kind] for seed, record in seeds.items()} for name, seeds in found.items()}


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper, or a question of our own: a module of this package.

    title, question       the first two paragraphs of its docstring
    runs(scale)           what it needs, at one of its scales
    show(scale, records)  blocks of the report from {name: record}, never called without a record
    scales                SCALES of the module: where it has runs
    exact                 EXACT: done as in the paper, at no smaller scale: a laptop is enough
    with_diverged         WITH_DIVERGED: whether show() takes records of runs that diverged, too
    in_all                IN_ALL: whether `run all` makes its runs; otherwise it is asked for by its name
    """

    name: str
    title: str
    question: str
    runs: Callable[[str], Sequence[Run]]
    show: Callable[[str, dict[str, Record]], Sequence[Block]]
    scales: Sequence[str] = SCALES
    exact: bool = False
    with_diverged: bool = False
    in_all: bool = True

    @staticmethod
    def of(module: Any) -> Experiment:
        title, question = (" ".join(part.split()) for part in module.__doc__.split("\n\n")[:2])
        said = {key: vars(module)[key.upper()] for key in ("scales", "exact", "with_diverged", "in_all")
                if key.upper() in vars(module)}  # fmt: skip
        return Experiment(module.__name__.rpartition(".")[2], title, question, module.runs, module.show, **said)

    def runs_at(self, scale: str) -> Sequence[Run]:
        """Its runs; none where that scale is not its own."""
        return self.runs(scale) if scale in self.scales else ()
