"""Config files as data, overrides by type, and every mistake in one message."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from runtime.settings import ConfigError, HelpRequested, parse, read_files


@dataclass(frozen=True)
class Toy:
    name: Annotated[str, "what it is called"] = "toy"
    steps: Annotated[int, "how long (steps)"] = 10
    rate: Annotated[float, "how fast (per step)"] = 0.5
    end: Annotated[int | None, "when to end (steps)"] = None
    loud: Annotated[bool, "whether it is loud"] = False
    maybe: Annotated[bool | None, "None lets it decide"] = None
    mode: Annotated[Literal["a", "b"], "how"] = "a"
    rates: Annotated[dict[str, float] | None, "by name (per step)"] = None
    momentum: Annotated[float | dict[str, float], "for all or by name"] = 0.0
    box: Annotated[dict[str, Any] | None, "(low, high) by name"] = None


def check(toy: Toy) -> Iterator[tuple[str, str]]:
    if toy.steps < 1:
        yield "steps", f"steps={toy.steps} must be 1 or more"
    if toy.rate > toy.steps:
        yield "rate steps", f"rate={toy.rate} is above steps={toy.steps}"


def toy(*argv: str) -> Toy:
    return parse(Toy, argv, check, "toy.py")


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        toy(*argv)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("--name=a b=c", "name", "a b=c"),
        ("--name=3", "name", "3"),
        ("--steps=2*10**3", "steps", 2000),
        ("--steps=-(-1_000)", "steps", 1000),
        ("--rate=3", "rate", 3.0),
        ("--rate=1e-3", "rate", 0.001),
        ("--rate=1/8", "rate", 0.125),
        ("--end=None", "end", None),
        ("--end=7", "end", 7),
        ("--loud", "loud", True),
        ("--loud=false", "loud", False),
        ("--maybe", "maybe", True),
        ("--maybe=False", "maybe", False),
        ("--mode=b", "mode", "b"),
        ("--rates={'x': 1}", "rates", {"x": 1.0}),
        ("--momentum=1", "momentum", 1.0),
        ("--momentum={'y': 0.5}", "momentum", {"y": 0.5}),
        ("--box={'y': (0.5, 1)}", "box", {"y": (0.5, 1)}),
        ("--box={'y': [0.5, 1]}", "box", {"y": (0.5, 1)}),
    ],
)
def test_values_arrive_with_their_type(argument: str, field: str, value: object) -> None:
    got = getattr(toy(argument), field)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--steps=2.5", "--steps=2.5: steps must be a whole number, not 2.5"),
        ("--steps=True", "--steps=True: steps must be a whole number, not True"),
        ("--rate=fast", "--rate=fast: rate must be a number, not 'fast'"),
        ("--rate=1/0", "--rate=1/0: rate must be a number, not '1/0'"),
        ("--end=x", "--end=x: end must be a whole number or None, not 'x'"),
        ("--loud=1", "--loud=1: loud must be True or False, not 1"),
        ("--mode=c", "--mode=c: mode must be 'a' or 'b', not 'c'"),
        ("--rates.x=2", "--rates.x=2: rates is None here and has no entries: write the whole dict, --rates={'x': 2}"),
        ("--momentum.y=0.5", "--momentum.y=0.5: momentum is 0.0 here and has no entries: write the whole dict, "
                             "--momentum={'y': 0.5}"),
        ("--steps.x=2", "--steps.x=2: steps must be a whole number, not {'x': 2}"),
        ("--rates={'x': True}", "--rates={'x': True}: rates must be a dict of numbers or None, not {'x': True}"),
        ("--stepz=1", "--stepz=1: unknown key 'stepz', did you mean 'steps'?"),
        ("--zzzz=1", "--zzzz=1: unknown key 'zzzz' (--help lists all)"),
        ("--steps", "--steps: write --key=value"),
        ("-steps=3", "-steps=3: write --key=value"),
        ("--rate=__import__('os').getcwd()", "--rate=__import__('os').getcwd(): rate must be a number, "
                                             "not \"__import__('os').getcwd()\""),
        ("--steps=0", "steps=0 must be 1 or more"),
        ("--steps=10**10000", "--steps=10**10000: steps must be a whole number, not '10**10000'"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line(argument: str, message: str) -> None:
    assert mistakes(argument)[0] == message


def test_all_mistakes_come_together_but_none_about_a_value_nobody_gave() -> None:
    lines = mistakes("--stepz=1", "--rate=x", "--steps=0", "nowhere.py")
    assert lines == [
        "nowhere.py: cannot be read (No such file or directory)",
        "--stepz=1: unknown key 'stepz', did you mean 'steps'?",
        "--rate=x: rate must be a number, not 'x'",
        "steps=0 must be 1 or more",
    ]


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_says_what_differs_from_its_base_and_the_command_line_wins(tmp_path: Path) -> None:
    write(tmp_path, "base.py", '"""A base."""\nsteps = 2 * 50\nrate = 0.25  # a comment\nname = "base"\n')
    child = write(tmp_path, "child.py", 'rate = -1.0\nbase = "base.py"\nrates = {"x": 1e-3, "y": 2}\n')
    assert toy(child, "--rates.y=5", "--name=me") == Toy(
        name="me", steps=100, rate=-1.0, rates={"x": 1e-3, "y": 5.0}
    )  # fmt: skip
    assert toy("--name=me", child).name == "me"
    assert mistakes(child, "--rates.y=z") == [
        "--rates.y=z: rates must be a dict of numbers or None, not {'x': 0.001, 'y': 'z'}"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os", ":1: a config file may only contain `name = value`: it is data and is not executed"),
        ("steps = 1\nif True:\n    steps = 2", ":2: a config file may only contain `name = value`: it is data"),
        ("steps = len('abc')", ":1: steps must be a literal or arithmetic on numbers (`len('abc')` is neither)"),
        ("steps = 'a' * 3", ":1: steps must be a literal or arithmetic on numbers (`'a' * 3` is neither)"),
        ("steps = 1 / 0", ":1: steps must be a literal or arithmetic on numbers (division by zero)"),
        ("rates = {**{}}", ":1: rates must be a literal or arithmetic on numbers (`{**{}}` is neither)"),
        ("steps = = 2", ": cannot be parsed (invalid syntax"),
        ("stepz = 2", ":1: unknown key 'stepz', did you mean 'steps'?"),
        ("base = 3", ":1: base must be the name of one config file, not 3"),
        ("base = 'file.py'", ": its base refers back to itself"),
    ],
)
def test_files_are_data(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "file.py", text)
    (line,) = mistakes(path)
    assert line.startswith(path + message)


def test_a_file_is_never_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = write(tmp_path, "evil.py", f"steps = open({str(witness)!r}, 'w').write('x')\n")
    mistakes(path)
    assert not witness.exists()


def test_help_shows_every_field_with_its_meaning_and_the_value_it_would_have(tmp_path: Path) -> None:
    path = write(tmp_path, "file.py", "steps = 77\n")
    with pytest.raises(HelpRequested) as caught:
        toy(path, "--help")
    text = str(caught.value)
    assert "--steps=77\n        how long (steps); a whole number" in text
    assert "--mode='a'\n        how; 'a' or 'b'" in text
    assert all(f"--{name}=" in text for name in Toy.__annotations__)


def test_files_are_read_as_one_dict(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("steps = 5 * 8\nrate = 1\n")
    (tmp_path / "b.py").write_text('"""Says more."""\nbase = "a.py"\nrate = 2e-3\nrates = {"x": 1 / 4}\n')
    (tmp_path / "c.py").write_text("steps = None\n")
    assert read_files([tmp_path / "b.py"]) == {"steps": 40, "rate": 2e-3, "rates": {"x": 0.25}}
    assert read_files([tmp_path / "b.py", tmp_path / "c.py"])["steps"] is None
    with pytest.raises(ConfigError, match=r"nothing\.py: cannot be read"):
        read_files([tmp_path / "b.py", tmp_path / "nothing.py"])
