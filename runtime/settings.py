"""Fill a typed dataclass from config files and the command line, and report all mistakes at once.

    python train.py config/quickstart.py --learning_rate=5e-4 --hyper_lr.beta1=1e-3 --compile

Config files use Python syntax but are parsed as data and never executed: lines of `name = value`, where a value is a
literal or arithmetic on numbers. `base = "other.py"` (relative to the file) inherits the settings of another file.
Later settings override earlier ones: base, file, next file, command line.

A field is declared as `name: Annotated[type, "meaning (unit)"] = default`. Types: str, int, float, bool, Literal,
dict[str, float], dict[str, Any], None and unions of these; Count, Natural and NonNegative have a minimum, the ~ of
a Place is expanded.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar
from cli import HelpRequested, Mistake, reason

from data.manifest import expand, read_text

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
LARGEST = 2**63  # absolute values of integers must be smaller, to fit into int64 tensors
NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


class AtLeast(NamedTuple):
    """Metadata of an annotation: the minimum of the field."""

    low: int


Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
NonNegative = Annotated[float, AtLeast(0)]
Place = Annotated[str, expand]  # a path, or a name


class ConfigError(Mistake):
    """The mistakes in a configuration, one per line."""


class Setting(NamedTuple):
    """One `name = value` of a config file, or one --name=value."""

    where: str  # "config/a.py:12", or the argument
    key: str  # a field, or FIELD.ENTRY for one entry of a dict
    value: Any
    file: str = ""  # "" for the command line


class Adapted(NamedTuple):
    """The result of `cls.adapt` (see `parse`)."""

    settings: list[Setting]
    names: Iterable[str] = ()  # accepted as keys besides the fields; suggested for misspelt keys
    errors: Iterable[str] = ()
    notes: Iterable[str] = ()  # printed if there are no errors


def parse(cls: type[T], argv: Iterable[str], check: Callable[[T], Iterable[tuple[str, str]]], program: str) -> T:
    """Fill the dataclass `cls` from argv, the arguments of `program`.

    An optional static method `cls.adapt` gets all settings in order before they are applied, and may rename, drop or
    add some; `cls.more_help()` is appended to the output of --help.

    Args:
        check: yields (names of the fields concerned, separated by spaces; the problem). Problems of fields that have
            an invalid value are not reported, as they would concern the default.
    Raises:
        ConfigError: everything that is wrong, one line each.
        HelpRequested: for --help or -h.
    """
    arguments = list(argv)
    annotations = typing.get_type_hints(cls, include_extras=True)
    errors: list[str] = []
    adapted = getattr(cls, "adapt", Adapted)(list(_settings(arguments, annotations, errors)))
    errors += adapted.errors
    values, bad = _values(adapted, annotations, cls, errors)
    config: Any = cls(**values)
    if "--help" in arguments or "-h" in arguments:
        raise HelpRequested(_help(config, annotations, program) + getattr(cls, "more_help", str)())
    for name, annotation in annotations.items():
        value, low = getattr(config, name), next((x.low for x in _extras(annotation) if isinstance(x, AtLeast)), None)
        if low is not None and value is not None and value < low and name not in bad:
            errors.append(f"{name}={value} must be {low} or more")
            bad.add(name)
            config = dataclasses.replace(config, **{name: low})  # `check` may divide by it
    for names, message in check(config):
        if not bad & set(names.split()):
            errors.append(message)
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    if os.environ.get("RANK", "0") == "0":
        for note in adapted.notes:
            print(f"{program}: {note}", file=sys.stderr)
    return config


def read_files(paths: Iterable[str | Path], overrides: dict[str, Any] | None = None,
               adapt: Callable[[list[Setting]], Adapted] = Adapted) -> dict[str, Any]:  # fmt: skip
    """{name: value} of config files, their bases and then `overrides`, without types. Raises ConfigError."""
    errors: list[str] = []
    settings = [setting for path in paths for setting in _file_settings(expand(path), errors, ())]
    settings += [Setting(f"--{key}={value}", key, value) for key, value in (overrides or {}).items()]
    adapted = adapt(settings)
    if errors := [*errors, *adapted.errors]:
        raise ConfigError("\n".join(errors))
    values: dict[str, Any] = {}
    for _, key, value, _ in adapted.settings:
        name, _, entry = key.partition(".")
        values[name] = {**values.get(name, {}), entry: value} if entry else value
    return values


def _values(adapted: Adapted, annotations: dict[str, Any], cls: Any, errors: list[str]) -> tuple[dict, set[str]]:
    """({field: value}, fields with an invalid value); appends to `errors`."""
    defaults = {field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                for field in dataclasses.fields(cls)}  # fmt: skip
    values: dict[str, Any] = {}
    bad: set[str] = set()
    for where, key, value, _ in adapted.settings:
        name, _, entry = key.partition(".")
        if name not in annotations:
            errors.append(f"{where}: unknown key {name!r}{nearest(name, [*annotations, *adapted.names])}")
            continue
        if entry:  # --hyper_lr.beta1=1e-3 changes one entry of a dict
            known = values.get(name, defaults[name])
            if isinstance(known, dict):
                value = known | {entry: value}
            elif any(typing.get_origin(choice) is dict for choice in _choices(annotations[name])):
                errors.append(f"{where}: {name} is {known!r} here and has no entries: write the whole dict, "
                              f"--{name}={{{entry!r}: {value!r}}}")  # fmt: skip
                bad.add(name)
                continue
            else:
                value = {entry: value}
        try:
            values[name] = value = _typed(value, annotations[name])
            if isinstance(value, str) and expand in _extras(annotations[name]):
                place = str(expand(value))
                values[name] = place if value.startswith("~") else value  # "./x" is not "x"
        except (TypeError, Mistake) as error:
            what = f"must be {error}, not {_short(value)}" if isinstance(error, TypeError) else f"= {error}"
            errors.append(f"{where}: {name} {what}")
            bad.add(name)
    return values, bad


def _settings(arguments: list[str], annotations: dict, errors: list[str]) -> Iterable[Setting]:
    """The settings of the files, then of the command line."""
    for argument in arguments:
        if not argument.startswith("-"):
            yield from _file_settings(expand(argument), errors, ())
    for argument in arguments:
        if argument in ("--help", "-h") or not argument.startswith("-"):
            continue
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and equals:
            yield Setting(argument, key, from_text(text, annotations.get(key)))
        elif argument.startswith("--") and key in annotations and bool in _choices(annotations[key]):
            yield Setting(argument, key, True)
        else:
            errors.append(f"{argument}: write --key=value")


def _file_settings(path: Path, errors: list[str], seen: tuple[Path, ...]) -> Iterable[Setting]:
    if path in seen:
        errors.append(f"{path}: its base refers back to itself")
        return
    try:
        tree = ast.parse(read_text(path), filename=str(path))
    except OSError as error:
        errors.append(f"{path}: cannot be read ({reason(error)})")
        return
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        errors.append(f"{path}: cannot be parsed ({reason(error)})")
        return
    settings: list[Setting] = []
    for node in tree.body:
        where = f"{path}:{node.lineno}"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue  # the docstring
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            errors.append(f"{where}: a config file may only contain `name = value`: it is data and is not executed")
            continue
        key = node.targets[0].id
        try:
            settings.append(Setting(where, key, _evaluate(node.value), str(path)))
        except (ValueError, ArithmeticError, TypeError, RecursionError) as error:
            errors.append(f"{where}: {key} must be a literal or arithmetic on numbers ({error})")
    for where, key, value, _ in settings:
        if key == "base":
            if isinstance(value, str) and [one.key for one in settings].count("base") == 1:
                yield from _file_settings(path.parent / expand(value), errors, (*seen, path))
            else:
                errors.append(f"{where}: base must be the name of one config file, not {value!r}")
    yield from (setting for setting in settings if setting.key != "base")


def _evaluate(node: ast.expr) -> Any:
    """The value of a literal or of arithmetic on numbers. Raises ValueError for anything else."""
    if isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) in OPERATORS:
        operands = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]
        numbers = [_evaluate(operand) for operand in operands]
        if all(isinstance(number, int | float) for number in numbers):
            if isinstance(node.op, ast.Pow) and abs(numbers[1]) > 1000:
                raise ValueError(f"the power {numbers[1]} is too large")
            result = OPERATORS[type(node.op)](*numbers)
            if isinstance(result, complex) or abs(result) >= 10**400:  # its powers would take too long
                raise ValueError(f"`{ast.unparse(node)[:40]}` is too large, or not a real number")
            return result
    elif isinstance(node, ast.Dict) and None not in node.keys:
        return {_evaluate(key): _evaluate(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    elif isinstance(node, ast.Tuple | ast.List):
        return tuple(map(_evaluate, node.elts))
    elif isinstance(node, ast.Constant):
        return node.value
    raise ValueError(f"`{ast.unparse(node)}` is neither")


def from_text(text: str, annotation: Any = None) -> Any:
    """A command-line value: the text itself if the field takes text, otherwise a literal or arithmetic."""
    if annotation is not None and text != "None" and any(isinstance(t, str) or t is str for t in _choices(annotation)):
        return text
    if text in ("true", "false"):
        return text == "true"
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError):
        return text  # of the wrong type, which `_typed` reports


def _choices(annotation: Any) -> list:
    """The types and literal values that an annotation allows."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return list(members)
    if origin is Annotated:
        return _choices(members[0])
    if origin in (types.UnionType, typing.Union):
        return [choice for member in members for choice in _choices(member)]
    return [annotation]


def _extras(annotation: Any) -> list:
    """The metadata of an annotation and of the members of its union."""
    members = (annotation, *typing.get_args(typing.get_args(annotation)[0]))
    return [extra for member in members for extra in getattr(member, "__metadata__", ())]


def _typed(value: Any, annotation: Any) -> Any:
    """`value` with the type of the annotation (an int becomes a float). Raises TypeError that says what is allowed."""
    for choice in _choices(annotation):
        if choice is float and type(value) in (int, float):
            return _finite(value)
        if typing.get_origin(choice) is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
            numbers = typing.get_args(choice)[1] is float
            if not numbers or all(type(v) in (int, float) for v in value.values()):
                return {key: _finite(v) if numbers or type(v) is float else v for key, v in value.items()}
        elif (isinstance(choice, type) and type(value) is choice) or (isinstance(choice, str) and value == choice):
            if type(value) is int and abs(value) >= LARGEST:
                raise TypeError(f"a whole number below 2**63 = {LARGEST}")
            return value
    raise TypeError(_expected(annotation))


def _finite(number: float) -> float:
    try:
        if abs(number := float(number)) < 2.0**128:  # not so NaN; what is larger is infinite in float32
            return number
    except OverflowError:
        pass
    raise TypeError("a finite number")


def _expected(annotation: Any) -> str:
    """What is allowed, in words."""
    words = []
    for choice in _choices(annotation):
        a_dict = "a dict" if Any in typing.get_args(choice) else "a dict of numbers"
        words.append(repr(choice) if isinstance(choice, str) else NAMES.get(choice, a_dict))
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**400 else "a number of 400 digits or more"
    return text if len(text) <= 200 else f"{text[:200]}..."


def nearest(name: str, names: Iterable[str], otherwise: str = " (--help lists all)") -> str:
    """The end of a message about an unknown name: ", did you mean ...?", or `otherwise` if no name is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {near[0]!r}?" if near else otherwise


def _help(config: Any, annotations: dict, program: str) -> str:
    lines = [
        f"usage: {program} [config/NAME.py ...] [--key=value ...]",
        "",
        'A config file contains assignments and is read as data, never executed. base = "other.py" inherits from',
        "another file. The command line overrides. --key.entry=value changes one entry of a dict; --key means True.",
        "The values shown are those of this command line without --help.",
        "",
    ]
    for name, annotation in annotations.items():
        lines.append(f"  --{name}={getattr(config, name)!r}")
        meaning = next(extra for extra in annotation.__metadata__ if isinstance(extra, str))
        lines.append(f"        {meaning}; {_expected(annotation)}")
    return "\n".join(lines)
