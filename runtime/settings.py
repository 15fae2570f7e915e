"""A typed dataclass filled from config files and the command line, with every mistake reported at once.

    python train.py config/quickstart.py --learning_rate=5e-4 --hyper_lr.beta1=1e-3 --compile

Config files look like Python and are PARSED AS DATA, never executed: one `name = value` a line, where a value is a
literal or arithmetic on numbers, and `base = "other.py"` (beside the file) starts from another file, so that a file
says little more than what differs. Later settings win: base, file, next file, command line.

A field is declared as `name: Annotated[type, "meaning (unit)"] = default`. Types: str, int, float, bool, Literal,
dict[str, float], None and unions of these.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import operator
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class ConfigError(ValueError):
    """All mistakes in a configuration, one a line."""


class HelpRequested(Exception):
    """--help was given; the text is the message."""


def parse(cls: type[T], argv: Iterable[str], check: Callable[[T], Iterable[tuple[str, str]]], program: str) -> T:
    """Fill the dataclass `cls` from argv, the arguments of `program`.

    Args:
        check: yields (names of the fields concerned, separated by spaces; what is wrong with them). A complaint about
            a field that is already known to be wrong is left out: it would be about a value nobody gave.
    Raises:
        ConfigError: everything that is wrong, one line each.
        HelpRequested: for --help or -h.
    """
    arguments = list(argv)
    annotations = typing.get_type_hints(cls, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    errors: list[str] = []
    bad: set[str] = set()
    values: dict[str, Any] = {}

    for where, key, value in _settings(arguments, annotations, errors):
        name, _, entry = key.partition(".")
        if name not in annotations:
            errors.append(f"{where}: unknown key {name!r}{_nearest(name, annotations)}")
            continue
        if entry:  # --hyper_lr.beta1=1e-3 changes one entry of a dict
            known = values.get(name, defaults[name])
            if not isinstance(known, dict) and any(typing.get_origin(t) is dict for t in _choices(annotations[name])):
                errors.append(
                    f"{where}: {name} is {known!r} here and has no entries: write the whole dict, "
                    f"--{name}={{{entry!r}: {value!r}}}"
                )
                bad.add(name)
                continue
            value = {**(known if isinstance(known, dict) else {}), entry: value}
        try:
            values[name] = _typed(value, annotations[name])
        except TypeError as error:
            errors.append(f"{where}: {name} must be {error}, not {value!r}")
            bad.add(name)

    config = cls(**values)
    if "--help" in arguments or "-h" in arguments:
        raise HelpRequested(_help(config, annotations, program))
    for names, message in check(config):
        if not bad & set(names.split()):
            errors.append(message)
    if errors:
        raise ConfigError("\n".join(errors))
    return config


def read_files(paths: Iterable[str | Path]) -> dict[str, Any]:
    """{name: value} of what config files and their bases say, a later one winning. Raises ConfigError."""
    errors: list[str] = []
    said = {key: value for path in paths for _, key, value in _file_settings(Path(path), errors, ())}
    if errors:
        raise ConfigError("\n".join(errors))
    return said


def _settings(arguments: list[str], annotations: dict, errors: list[str]) -> Iterable[tuple[str, str, Any]]:
    """(where it was said, key, value) of every setting, in the order in which they take effect."""
    for argument in arguments:
        if not argument.startswith("-"):
            yield from _file_settings(Path(argument), errors, ())
    for argument in arguments:
        if argument in ("--help", "-h") or not argument.startswith("-"):
            continue
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and equals:
            yield argument, key, _from_text(text, annotations.get(key))
        elif argument.startswith("--") and key in annotations and bool in _alternatives(annotations[key]):
            yield argument, key, True
        else:
            errors.append(f"{argument}: write --key=value")


def _file_settings(path: Path, errors: list[str], seen: tuple[Path, ...]) -> Iterable[tuple[str, str, Any]]:
    if path in seen:
        errors.append(f"{path}: its base leads back to itself")
        return
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except OSError as error:
        errors.append(f"{path}: cannot be read ({error.strerror})")
        return
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        errors.append(f"{path}: cannot be parsed ({error})")
        return
    settings = []
    for node in tree.body:
        where = f"{path}:{node.lineno}"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue  # the docstring
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            errors.append(f"{where}: only `name = value` may stand in a config file, it is data and is not executed")
            continue
        key = node.targets[0].id
        try:
            settings.append((where, key, _evaluate(node.value)))
        except (ValueError, ArithmeticError) as error:
            errors.append(f"{where}: {key} must be a literal or arithmetic on numbers ({error})")
    for where, key, value in settings:
        if key == "base":
            if isinstance(value, str):
                yield from _file_settings(path.parent / value, errors, (*seen, path))
            else:
                errors.append(f"{where}: base must be the name of a config file, not {value!r}")
    yield from (setting for setting in settings if setting[1] != "base")


def _evaluate(node: ast.expr) -> Any:
    """The value of a literal or of arithmetic on numbers; ValueError for anything else."""
    if isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) in OPERATORS:
        operands = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]
        numbers = [_evaluate(operand) for operand in operands]
        if all(isinstance(number, int | float) for number in numbers):
            if isinstance(node.op, ast.Pow) and abs(numbers[1]) > 1000:
                raise ValueError(f"the power {numbers[1]} is too large")
            return OPERATORS[type(node.op)](*numbers)
    elif isinstance(node, ast.Dict) and None not in node.keys:
        return {_evaluate(key): _evaluate(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    elif isinstance(node, ast.Constant):
        return node.value
    raise ValueError(f"`{ast.unparse(node)}` is neither")


def _from_text(text: str, annotation: Any) -> Any:
    """A command-line value: text where the field takes text, otherwise a literal or arithmetic."""
    if annotation is not None and text != "None" and any(isinstance(t, str) or t is str for t in _choices(annotation)):
        return text
    if text in ("true", "false"):
        return text == "true"
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError):
        return text  # its type is wrong, and the message shows it


def _alternatives(annotation: Any) -> tuple:
    """The members of a union without its Annotated coat: (float, NoneType) for Annotated[float | None, "..."]."""
    inner = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    return typing.get_args(inner) if isinstance(inner, types.UnionType) else (inner,)


def _choices(annotation: Any) -> list:
    """The same with Literal["a", "b"] spelled out to "a", "b"."""
    nested = (typing.get_args(t) if typing.get_origin(t) is typing.Literal else (t,) for t in _alternatives(annotation))
    return [choice for choices in nested for choice in choices]


def _typed(value: Any, annotation: Any) -> Any:
    """`value` as the annotation has it (an int may stand for a float); TypeError saying what is allowed."""
    for choice in _choices(annotation):
        if choice is float and type(value) in (int, float):
            return float(value)
        if typing.get_origin(choice) is dict and isinstance(value, dict):
            if all(isinstance(key, str) and type(number) in (int, float) for key, number in value.items()):
                return {key: float(number) for key, number in value.items()}
        elif (isinstance(choice, type) and type(value) is choice) or (isinstance(choice, str) and value == choice):
            return value
    raise TypeError(_expected(annotation))


NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


def _expected(annotation: Any) -> str:
    words = [NAMES.get(c) or (repr(c) if isinstance(c, str) else "a dict of numbers") for c in _choices(annotation)]
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {near[0]!r}?" if near else " (--help lists all)"


def _help(config: Any, annotations: dict, program: str) -> str:
    lines = [
        f"usage: {program} [config/NAME.py ...] [--key=value ...]",
        "",
        'A config file holds plain assignments and is read as data: it is never executed. base = "other.py" starts',
        "from another file. The command line wins. --key.entry=value changes one entry of a dict; --key alone is True.",
        "The values shown are those of this command line without --help.",
        "",
    ]
    for name, annotation in annotations.items():
        lines.append(f"  --{name}={getattr(config, name)!r}")
        lines.append(f"        {typing.get_args(annotation)[1]}; {_expected(annotation)}")
    return "\n".join(lines)
