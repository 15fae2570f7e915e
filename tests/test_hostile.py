"""Whatever is typed, whatever became of the files: the right result, or exit code 2 with a line; no traceback, no hang.

The options are those of the typed configs and of argparse, the files those that a run and a preparation leave. By
default a part of all cases is tried, the same each time; the rest is long.
"""

import argparse
import dataclasses
import os
import random
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
import cli

import pytest
from outcomes import without_seconds
from processes import forked, small_run

import compare
import data.prepare
import evaluate
import experiments.__main__
import export
import sample
import sweep
import train
from runtime import settings

SECONDS = 20  # that a program may take to say no, or for its smallest piece of work, on a busy machine
FEW = {"options": 80, "files": 40}  # cases of the default run
CONFIGS = {"train.py": train.Config, "sample.py": sample.Config, "evaluate.py": evaluate.Config,
           "export.py": export.Config}  # fmt: skip
MAINS = {"train.py": train.main, "sample.py": sample.main, "evaluate.py": evaluate.main, "export.py": export.main}
PARSERS = {"compare.py": compare.main, "sweep.py": sweep.main, "experiments": experiments.__main__.main,
           "prepare.py": lambda _: data.prepare.main()}  # fmt: skip
NUMBERS = ["nan", "-inf", "1e400", "1e-400", "-1", "0", "-0.0", "1e300", "0.5", str(2**62), str(2**63), str(2**64),
           "-" + "9" * 400, "10**400", "(9**999)**999", "1+" * 3000 + "1", "-" * 5000 + "1", "1e999-1e999"]  # fmt: skip
TEXTS = ["", " ", "x", "é", "\udcff", "None", "True", "{}", "{'a': 1}", "{1: 2}", "{'beta1': 'x'}", "[1",
         "[" * 3000, "a" * 300, "a/" * 3000, "\n", "-", "--", "%s", "/dev/null", "/dev/full", "/proc/self/mem",
         "~nobody_here/x", "HERE/loop", "HERE/pipe", "HERE/file", "HERE/folder", "HERE/file/x", "file:HERE/pipe",
         "HERE/a.py:B", "torch.optim:Nothing", "os:system", "HERE/config.json", "HERE/missing.pt"]  # fmt: skip
ENDLESS = {"gradient_accumulation_steps", "max_new_tokens", "num_samples", "jobs", "threads", "trials"}  # much to do
HALF = ["--eval_interval=3", "--lr_decay_iters=12"]
# One step, then a signal; nothing is compiled, nothing sent.
SHORT = """
import os, signal, train
train.parallel.compilation = lambda *_: (False, False, None)
train.signals.between_steps_only = lambda real=train.signals.between_steps_only: (real(), os.kill(os.getpid(), 15))
os.environ["WANDB_MODE"] = "disabled"
import sweep
sweep.Sweep.probe = lambda *_: 1.0
"""


@pytest.fixture(scope="module")
def made(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two checkpoints, its data, its weights in Hugging Face's format, a text, and oddities."""
    here = tmp_path_factory.mktemp("made")
    shutil.copytree(corpus, here / "data")
    run = ["train.py", *small_run(str(here / "data"), here / "run"), *HALF, "--max_iters=9"]
    text = here / "text.txt"
    text.write_text("the adaptive optimizer learns\n" * 3000)
    exported = ["export.py", f"--out_dir={here / 'run'}", f"--folder={here / 'weights'}"]
    prepared = ["prepare.py", "--input", str(text), "--tokenizer=char", f"--out={here / 'own'}"]
    ends = forked(*({"argv": argv} for argv in (run, exported, prepared)))
    assert [end["code"] for end in ends] == [0, 0, 0], ends
    (here / "loop").symlink_to(here / "loop")
    os.mkfifo(here / "pipe")
    (here / "file").write_bytes(bytes(range(256)))
    (here / "a.py").write_text("B = 1/0\n")
    (here / "config.json").write_text("[" * 5000)
    (here / "folder").mkdir()
    return here


def base(name: str, here: Path, out: Path) -> list[str]:
    """A command that is right, to which one option is added."""
    run = f"--out_dir={here / 'run'}"
    return {
        "train.py": [*small_run(str(here / "data"), out / "run"), "--max_iters=2", "--eval_iters=2"],
        "sample.py": [run, "--max_new_tokens=2", "--device=cpu"],
        "evaluate.py": [run, f"--dataset={here / 'data'}", "--device=cpu", f"--json={out / 'evaluation.json'}"],
        "export.py": [run, f"--folder={out / 'weights'}"],
        "compare.py": [str(here / "run"), "--out", str(out / "compared")],
        "sweep.py": ["--plan", "--out", str(out / "sweep")],
        "experiments": ["report", "--folder", str(out)],
        "prepare.py": ["--input", str(here / "text.txt"), "--tokenizer=char", "--out", str(out / "data")],
    }[name]


class Captured(Exception):
    pass


def argparse_options(main: Callable[[list[str]], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a program that uses argparse, those of its subcommands included."""

    def capture(self: cli.Parser, *_: object) -> None:
        raise Captured(self)

    with monkeypatch.context() as patch, pytest.raises(Captured) as caught:
        patch.setattr(cli.Parser, "parse_known_args", capture)
        main([])
    parsers = [caught.value.args[0]]
    options = []
    for parser in parsers:
        for action in parser._actions:
            parsers += action.choices.values() if isinstance(action, argparse._SubParsersAction) else []
            options += [option for option in action.option_strings if option.startswith("--") and option != "--help"]
    return options


def cases(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, str]]:
    """(program, option, value) of all."""
    for name, config in CONFIGS.items():
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            words = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is typing.Literal else ()
            for value in (*NUMBERS, *TEXTS, *words):
                yield name, f"--{field.name}", value
    for name, main in PARSERS.items():
        for option in argparse_options(main, monkeypatch):
            for value in (*NUMBERS, *TEXTS):
                yield name, option, value


def told(end: dict, codes: set[int]) -> str:
    """What is wrong with the end of a program; "" if nothing."""
    lines = end["err"].splitlines()
    if "Traceback" in end["err"] or "Exception ignored" in end["err"] or end["code"] not in codes:
        return f"code {end['code']}: {end['err'][-1500:]}"
    if end["code"] == 2 and (not 1 <= len(lines) <= 4 or len(end["err"]) > 4000):
        return f"{len(lines)} lines of {len(end['err'])} characters: {end['err'][:300]}"
    return ""


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_worst_values_of_every_option(made: Path, tmp_path: Path, monkeypatch, all_of_them: bool) -> None:
    wanted = [case for case in cases(made, monkeypatch) if case[1].strip("-") not in ENDLESS or ("9" not in case[2]
              and case[2] not in (str(2**62), "1e300"))]  # fmt: skip
    assert len(wanted) > 3000 and {name for name, _, _ in wanted} == {*CONFIGS, *PARSERS}
    if not all_of_them:
        wanted = random.Random(1).sample(wanted, FEW["options"])
    wrong = []
    for i, (name, option, value) in enumerate(wanted):
        out = tmp_path / str(i)
        out.mkdir()
        added = f"{option}={value.replace('HERE', str(made))}"
        argv = [name, *base(name, made, out), added]
        if name == "experiments" and option != "--folder":
            argv = [name, "run", "figure9", "--only", "nothing", added]
        (end,) = forked({"argv": argv, "seconds": SECONDS, "patch": SHORT, "cwd": str(out)})
        if problem := told(end, {0, 2, 3, 130} if name == "train.py" else {0, 2}):
            wrong.append(f"{name} {option}={value[:80]!r}: {problem}")
        shutil.rmtree(out)
    assert wrong == [], f"{len(wrong)} of {len(wanted)}:\n" + "\n\n".join(wrong)


def test_every_number_below_its_range_is_one_line(capsys) -> None:
    """The checks of several fields together see none: `n_head=0` once divided by it."""
    tried = 0
    for name, config in CONFIGS.items():
        for field, hint in typing.get_type_hints(config, include_extras=True).items():
            lows = [extra.low for extra in settings._extras(hint) if isinstance(extra, settings.AtLeast)]
            for low in lows:
                tried += 1
                assert MAINS[name]([f"--{field}={low - 1}"]) == 2
                said = capsys.readouterr().err
                assert re.match(rf"{name}: {field}={low - 1}(\.0)? must be {low} or more", said), said
    assert tried > 20


INTERRUPT = "import os, threading; threading.Timer({}, os.kill, (os.getpid(), 2)).start()"


def test_ctrl_c_at_any_moment_is_no_traceback(made: Path, tmp_path: Path) -> None:
    """As a timer sends it, in the reading of files and in the work."""
    cases = [(name, seconds) for name in (*CONFIGS, *PARSERS) for seconds in (0.01, 0.2)]
    jobs = []
    for i, (name, seconds) in enumerate(cases):
        (out := tmp_path / str(i)).mkdir()
        argv = [name, *base(name, made, out), *(["--max_iters=999"] if name == "train.py" else [])]
        jobs.append({"argv": argv, "patch": INTERRUPT.format(seconds), "cwd": str(out)})
    ends = forked(*jobs)
    assert sum(end["code"] == 130 for end in ends) > len(CONFIGS)
    for case, end in zip(cases, ends, strict=True):
        assert told(end, {0, 130}) == "", (case, end)


CONFIG_FILES = {  # a config file, and what is said of it
    "hyper_lr = {{}: 1}": "unhashable", "hyper_lr = {('a',): 1}": "hyper_lr must be a dict of numbers",
    "out_dir = 'a\\0b'": "it has a NUL character", "out_dir = '\\ud800'": "surrogates not allowed",
    "beta1 = 10**399": "must be a number", "base = '~nobody_here/x.py'": "is no path",
    "learning_rate = 1e999 - 1e999": "must be a finite number", "n_layer = [0] * 10**9": "must be a literal",
    "seed = __import__('os').getpid()": "must be a literal", "n_layer = " + "-" * 10**5 + "1": "cannot be parsed (",
    "base = 'b0.py'\nbase = 'b0.py'": "base must be the name of one config file",  # 2**25 readings
    "optimizer = 'torch.optim:SparseAdam'": "a step of SparseAdam failed (RuntimeError: SparseAdam does not",
}  # fmt: skip


def test_what_attackers_found(made: Path, tmp_path: Path) -> None:
    """(command, exit code, a part of the line) for what once ended in a traceback, a hang or a silent wrong result."""
    left_out = re.compile("--(out_dir|optimizer|hyper_lr|hyper_momentum|learning_rate|min_lr|warmup_iters)=")
    run = ["train.py", *(a for a in small_run(str(made / "data"), tmp_path) if not left_out.match(a))]
    for i in range(25):
        (tmp_path / f"b{i}.py").write_text(f"base = 'b{i + 1}.py'\n" * 2)
    (tmp_path / "b25.py").write_text("n_layer = 1\n")
    cases: list[tuple[list[object], int, str]] = []
    for i, (text, said) in enumerate(CONFIG_FILES.items()):
        (tmp_path / f"{i}.py").write_text(text)
        cases.append(([*run, tmp_path / f"{i}.py", "--max_iters=1"], 2, said))
    shutil.copytree(made / "weights", piped := tmp_path / "weights")
    (piped / "model.safetensors").unlink()
    os.mkfifo(piped / "model.safetensors")
    (tmp_path / "empty").touch()
    over = [*run, "--optimizer=adam", "--learning_rate=1e38", "--min_lr=1e38", "--warmup_iters=0", "--out_dir=~/nan"]
    sampled, nan = ["sample.py", f"--out_dir={made / 'run'}"], ["--out_dir=~/nan", f"--dataset={made / 'data'}"]
    cases += [
        ([*run, "--hyper_lr={1: 2}"], 2, "hyper_lr must be a dict of numbers"),
        ([*run, "--n_embd=4611686018427387904", "--out_dir=x"], 2, "out of memory (Storage size calculation"),
        ([*run, "--init_from=nothing.pt", "--out_dir=x"], 2, "nothing.pt does not exist"),
        ([*sampled, "--prompt=file:" + str(made / "pipe")], 2, "cannot be read: not a regular file\n"),
        (["prepare.py", "--input", made / "text.txt", "--tokenizer=char", "--out", made / "loop"], 2, "File exists"),
        (["evaluate.py", *sampled[1:], f"--json={made / 'config.json'}"], 2, "is not a record of evaluate.py"),
        (["export.py", "--from_folder", f"--folder={piped}", "--out_dir=x"], 2, "is not a regular file"),
        (["compare.py", made / "run", "--out", made / "file"], 2, "file cannot be written (File exists)"),
        (["sweep.py", "--plan", "--out=s", "--runs", made / "file"], 2, "file is not UTF-8 text"),
        (["sweep.py", "--plan", "--out=s", "--runs", tmp_path / "empty"], 2, "empty holds no run"),
        (over, 3, "the last validation loss is nan"),  # every weight is finite
        (["sample.py", nan[0]], 2, "has the validation loss nan: choose an earlier checkpoint"),
        (["evaluate.py", *nan], 2, "has the validation loss nan: choose an earlier checkpoint"),
        (["export.py", nan[0], "--folder=x"], 2, "has the validation loss nan: choose an earlier checkpoint"),
    ]  # fmt: skip
    jobs = [{"argv": [*map(str, argv)], "cwd": str(tmp_path), "env": {"HOME": str(tmp_path)}, "seconds": SECONDS}
            for argv, _, _ in cases]  # fmt: skip
    for (argv, code, said), end in zip(cases, forked(*jobs), strict=True):
        assert told(end, {code}) == "" and said in end["err"], (argv, end)
    assert (tmp_path / "nan" / "metrics.csv").is_file() and not (tmp_path / "~").exists()


# What becomes of a file: its new content, or what is there in its place.
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda old, _: b"",
    "half": lambda old, _: old[: len(old) // 2],
    "bit": lambda old, rng: flipped(old, rng.randrange(8 * len(old) or 1)),
    "byte": lambda old, rng: old[: (i := rng.randrange(len(old) or 1))] + b"\xff" + old[i + 1 :],
    "noise": lambda old, rng: rng.randbytes(len(old)),
    "NULs": lambda old, rng: old[: (i := rng.randrange(len(old) or 1))] + bytes(200) + old[i + 200 :],
    "semicolons": lambda old, _: old.replace(b",", b";"),
    "no first line": lambda old, _: old.partition(b"\n")[2],
    "a line less": lambda old, _: b"".join(line for i, line in enumerate(old.splitlines(True)) if i != 2),
    "list": lambda old, _: b"[]",
    "dict": lambda old, _: b"{}",
    "nested": lambda old, _: b"[" * 100_000,
    "nested well": lambda old, _: b'{"config": ' * 400 + b"{}" + b"}" * 400,
}
READ = {"sample.py": "ckpt", "plot.py": "csv", "compare.py": "csv|config"}  # others read, or look at, every file
PLACES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
}


def flipped(data: bytes, bit: int) -> bytes:
    found = bytearray(data)
    found[bit // 8 : bit // 8 + 1] = bytes(b ^ 1 << bit % 8 for b in found[bit // 8 : bit // 8 + 1])
    return bytes(found)


def damage(path: Path, kind: str, rng: random.Random) -> None:
    old = path.read_bytes()
    if kind in DAMAGES:
        path.write_bytes(DAMAGES[kind](old, rng))
    else:
        path.unlink()
        PLACES[kind](path)


def users(here: Path) -> dict[str, list[list[str]]]:
    """{folder: the commands that read it}."""
    run, data = f"--out_dir={here / 'run'}", f"--dataset={here / 'data'}"
    again = ["train.py", *train_command(here), *HALF]
    weights = f"--weights={here / 'weights'}"
    return {
        "run": [[*again, "--init_from=auto"], ["sample.py", run, "--max_new_tokens=9", "--device=cpu"],
                ["plot.py", str(here / "run")], ["compare.py", str(here / "run"), "--out", str(here / "compared")]],
        "data": [[*again, "--verify_data"], ["evaluate.py", run, data, "--device=cpu"]],
        "weights": [["export.py", "--from_folder", f"--folder={here / 'weights'}", f"--out_dir={here / 'imported'}"],
                    [*again, weights, "--max_iters=1", "--dropout=0"]],
        "own": [["prepare.py", "--input", str(here / "text.txt"), "--tokenizer=char", f"--out={here / 'own'}"]],
    }  # fmt: skip


def train_command(here: Path) -> list[str]:
    return small_run(str(here / "data"), here / "run")


def copied(made: Path, here: Path) -> Path:
    """The folders of `made` again."""
    for name in ("run", "data", "weights", "own"):
        shutil.copytree(made / name, here / name)
    (here / "text.txt").symlink_to(made / "text.txt")  # a data set knows the place of its source
    return here


def results(here: Path, name: str, out: str) -> object:
    """What a command that ended well must have come to, however the files were damaged."""
    if name == "train.py":
        return without_seconds(here / "run")
    if name == "prepare.py":
        return {path.name: path.read_bytes() for path in (here / "own").glob("*.bin")}
    return out if name == "sample.py" else None


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.long)])
def test_whatever_became_of_the_files(made: Path, tmp_path: Path, all_of_them: bool) -> None:
    right = {}
    for folder, each in users(made).items():
        for i in range(len(each)):
            here = copied(made, tmp_path / f"{folder}-{i}")
            command = users(here)[folder][i]
            (end,) = forked({"argv": command})
            assert end["code"] == 0, (command, end)
            right[folder, i] = results(here, command[0], end["out"]) if folder != "weights" else None  # no checksum
    wanted = [(folder, i, file.name, kind) for folder, i in right for file in sorted((made / folder).iterdir())
              if file.is_file() and re.search(READ.get(users(made)[folder][i][0], ""), file.name)
              for kind in (*DAMAGES, *PLACES)]  # fmt: skip
    assert len(wanted) > 400
    if not all_of_them:
        wanted = random.Random(2).sample(wanted, FEW["files"])
    wrong = []
    for n, (folder, i, file, kind) in enumerate(wanted):
        here = copied(made, tmp_path / str(n))
        damage(here / folder / file, kind, random.Random(n))
        command = users(here)[folder][i]
        (end,) = forked({"argv": command, "seconds": SECONDS, "cwd": str(here)})
        problem = told(end, {0, 2})
        if not problem and end["code"] == 0 and right[folder, i] is not None and "skipping" not in end["err"]:
            same = results(here, command[0], end["out"]) == right[folder, i]
            problem = "" if same else f"another result: {end['out'][-1500:]} {end['err']}"
        if problem:
            wrong.append(f"{folder}/{file} {kind}: {command[0]}: {problem}")
        shutil.rmtree(here)
    assert wrong == [], f"{len(wrong)} of {len(wanted)}:\n" + "\n\n".join(wrong)
