"""The optimizer of a run and its settings: a rule of optim/, a user's rule, or any torch optimizer.

    --optimizer=mada                        a rule of optim/
    --optimizer=path/to/file.py:ClassName   a rule in a user's file, which is imported and thereby executed
    --optimizer=torch.optim:AdamW           a class or function (param groups, lr, weight_decay, ...) -> torch optimizer

A rule declares its coefficients (`table`, `constants`); no other place lists them. The keywords of a torch optimizer
are set by --coefficients.NAME=VALUE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.manifest import expand
from model import GPT, GPTConfig
from optim import OPTIMIZERS, RuleOptimizer
from runtime.records import final_coefficients
from runtime.settings import Adapted, ConfigError, Setting, nearest

DEFAULT = "mada"
RULE_FIELDS = (  # of a config, with the names of a rule's keywords
    "hyper_lr", "hyper_momentum", "hyper_optimizer", "hyper_space", "hyper_start", "hyper_clip", "order", "scope",
    "box",
)  # fmt: skip


def load(spec: str) -> Any:
    """The rule (a subclass of RuleOptimizer), or the callable that makes a torch optimizer. Raises ConfigError."""
    module_name, colon, name = spec.rpartition(":")
    if not colon:
        if spec.lower() in OPTIMIZERS:
            return OPTIMIZERS[spec.lower()]
        raise ConfigError(f"optimizer={spec!r} is not one of {', '.join(OPTIMIZERS)}{nearest(spec, OPTIMIZERS, '')}; "
                          "your own is path/to/file.py:ClassName or package:ClassName")  # fmt: skip
    try:
        module = _import(module_name)
    except Exception as error:  # a user's file may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"optimizer={spec!r}: {module_name} cannot be imported ({reason})") from None
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        problem = f"{module_name} has no class or function {name!r}{nearest(name, names, '')}"
        raise ConfigError(f"optimizer={spec!r}: {problem}")
    return factory


def _import(module: str) -> Any:
    """Import a module by its dotted name or by the path of its file."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = expand(module).resolve()
    name = str(path)  # as the module's name, it cannot collide with another module
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise FileNotFoundError("there is no such file")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.append(str(path.parent))  # for imports of neighbouring files
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def is_rule(factory: Any) -> bool:
    return isinstance(factory, type) and issubclass(factory, RuleOptimizer)


# ------------------------------------------------------------------------------------------------------- settings


def adapt(settings: list[Setting]) -> Adapted:
    """Apply the settings of coefficients to the chosen optimizer (see `parse` in runtime/settings.py).

    `beta1 = 0.9` becomes an entry of `coefficients`, which start with the values of the rule. A coefficient that the
    optimizer does not have is an error on the command line; in a config file it is ignored, with a note. Of a config
    file written for another optimizer only constants are used and coefficients that both have with the same default and
    box (beta1 of MADA and Adam, not of Lion), and of `hyper_lr` and `hyper_momentum` entries for what this one learns
    by default.
    """
    settings = [s._replace(value=_spec(s)) if s.key == "optimizer" else s for s in settings]
    spec, written_for = DEFAULT, {}  # the second: {config file: the optimizer chosen at its end}
    for setting in settings:
        spec = setting.value if setting.key == "optimizer" else spec
        written_for[setting.file] = spec
    try:
        factory = load(spec)
    except ConfigError as error:
        return Adapted([s for s in settings if not _about_coefficients(s)], errors=[str(error)])
    rule = factory if is_rule(factory) else None
    names = [*rule.table, *rule.constants] if rule else []
    defaults: dict[str, Any] = {"coefficients": {}, "hyper_lr": {}, "hyper_momentum": 0.0, "box": {}}
    if rule:
        defaults["coefficients"] = {name: c.start for name, c in rule.table.items()} | dict(rule.constants)
        defaults["hyper_lr"] = {name: rule.table[name].hyper_lr for name in rule.learns}

    merged, last_set = dict(defaults), dict.fromkeys(defaults, "")
    others: list[Setting] = []
    ignored: dict[str, dict[str, None]] = {"": {}}  # names by field, in order
    errors: dict[str, list[str]] = {field: [] for field in defaults}
    for setting in settings:
        if not _about_coefficients(setting, names):
            others.append(setting)
            continue
        field, _, entry = setting.key.partition(".")
        if field not in defaults:  # `beta1 = 0.9`
            field, entry = "coefficients", setting.key
        last_set[field] = setting.where
        foreign = bool(setting.file) and written_for[setting.file] != spec
        if setting.key == "hyper_lr" and not rule and foreign and setting.value is not None:
            ignored[""]["hyper_lr"] = None
            continue
        if setting.key == "hyper_lr" and rule and type(setting.value) in (int, float):  # one for all
            setting = setting._replace(value=dict.fromkeys(rule.learns or rule.table, setting.value))
        if not entry and field != "coefficients":  # replaces earlier settings and their errors
            errors[field] = []
        if not entry and not (isinstance(setting.value, dict) and all(isinstance(k, str) for k in setting.value)):
            merged[field] = defaults[field] if setting.value is None else setting.value
            continue
        if entry and field == "hyper_momentum" and type(merged[field]) in (int, float) and merged[field]:
            errors[field].append(f"{setting.where}: {field} is {merged[field]} for all: write a dict instead")
            continue
        if not foreign:
            known = names if field == "coefficients" else [*names, "lr"] if rule else []
        elif field == "coefficients":
            mine, theirs = _declared(spec), _declared(written_for[setting.file])
            known = [name for name in names if name in theirs and theirs[name] == mine[name]]
        else:
            known = [*rule.learns] if rule else []
        kept: dict[str, Any] = {}
        for name, value in ({entry: setting.value} if entry else setting.value).items():
            if rule and name in known and field == "coefficients" and type(value) not in (int, float, type(None)):
                errors[field].append(f"{setting.where}: {name} must be a number, not {value!r}")
            elif name in known or (field == "coefficients" and not rule and not foreign):
                default = defaults[field]
                kept[name] = (default.get(name) if isinstance(default, dict) else None) if value is None else value
            elif setting.file and value is not None:
                ignored.setdefault("" if field == "coefficients" else f"{field} of ", {})[name] = None
            elif value is not None:
                errors[field].append(f"{setting.where}: {_unknown(name, field, spec, names)}")
        replace = field != "coefficients" and not entry and not foreign
        merged[field] = kept if replace or not isinstance(merged[field], dict) else merged[field] | kept
    for field, found in merged.items():
        if isinstance(found, dict):
            merged[field] = {name: value for name, value in found.items() if value is not None}
    listed = "; ".join(field + ", ".join(left) for field, left in ignored.items() if left)
    notes = [f"optimizer={spec} ignores these settings of the config files: {listed}"] if listed else []
    result = [Setting(last_set[field], field, value) for field, value in merged.items()]
    return Adapted([*others, *result], names, [e for of_field in errors.values() for e in of_field], notes)


def _declared(spec: str) -> dict[str, Any]:
    """The coefficients of a rule, and None for its constants; {} for any other optimizer."""
    try:
        rule = load(spec)
    except ConfigError:
        return {}
    return {**rule.table, **dict.fromkeys(rule.constants)} if is_rule(rule) else {}


def _spec(setting: Setting) -> str:
    """The value of an `optimizer` setting; the path of a rule may be relative to the config file."""
    path, colon, name = str(setting.value).rpartition(":")
    beside = Path(setting.file).parent / path
    if colon and path.endswith(".py") and setting.file and not expand(path).exists() and beside.exists():
        return f"{beside}:{name}"
    return str(setting.value)


def _about_coefficients(setting: Setting, names: Iterable[str] = ()) -> bool:
    known = {name for rule in OPTIMIZERS.values() for name in (*rule.table, *rule.constants)} | {*names}
    field = setting.key.partition(".")[0]
    return field in ("coefficients", "hyper_lr", "hyper_momentum", "box") or field in known


def _unknown(name: str, field: str, spec: str, names: list[str]) -> str:
    if names:
        return f"{spec} has no coefficient {name!r}, it has {', '.join(names)}{nearest(name, names, '')}"
    if field == "coefficients":
        return f"set a keyword of {spec} by --coefficients.{name}=..."
    return f"{spec} has no learned coefficients"


def load_coefficients(cfg: Any) -> Any:
    """The config with the coefficients of the run in `coefficients_from`, if it is set. Raises ConfigError."""
    if cfg.coefficients_from is None:
        return cfg
    found = final_coefficients(cfg.coefficients_from, getattr(load(cfg.optimizer), "table", ()))
    cfg = dataclasses.replace(cfg, coefficients=cfg.coefficients | found)
    for _, problem in problems(cfg):
        raise ConfigError(f"coefficients_from={cfg.coefficients_from!r}: {problem}")
    return cfg


def problems(cfg: Any) -> Iterator[tuple[str, str]]:
    """Problems of the optimizer's settings, for `parse`."""
    fields = " ".join(("optimizer", "coefficients", "learning_rate", "weight_decay", *RULE_FIELDS))
    try:
        learned_and_bytes(cfg)
    except ConfigError:  # reported by `adapt`
        return
    except (ValueError, TypeError) as error:
        yield fields, f"optimizer={cfg.optimizer}: {error}"
    if not is_rule(load(cfg.optimizer)):
        sharded = cfg.parallel == "fsdp" and int(os.environ.get("WORLD_SIZE") or 1) > 1
        for name, value, wrong in (("cuda_graph", True, cfg.cuda_graph), ("parallel", "fsdp", sharded)):
            if wrong:
                yield f"{name} optimizer", f"{name}={value} is for a rule of optim/ or your own, not {cfg.optimizer}"


def table() -> str:
    """The coefficients of each rule, for --help."""
    lines = ["\n\nCoefficients, set by NAME = VALUE in a file or --NAME=VALUE, learned if hyper_lr lists them:"]
    for optimizer, rule in OPTIMIZERS.items():
        lines.append(f"\n  {optimizer}" + (f" learns {', '.join(rule.learns)} by default" if rule.learns else ""))
        for name, c in rule.table.items():
            rate = f", hyper_lr {c.hyper_lr:g}" if name in rule.learns else ""
            lines.append(f"    {name} = {c.start:g}, learned within [{c.low:g}, {c.high:g}]{rate}: {c.meaning}")
        lines += [f"    {name} = {value:g}, not learned" for name, value in rule.constants.items()]
    lines.append("\n  path/to/file.py:ClassName is your own rule; its file is executed.\n"
                 "  torch.optim:AdamW, package:ClassName or file.py:function make any torch optimizer, with the\n"
                 "  keywords of --coefficients.NAME=VALUE. torch.optim:Muon gets the hidden matrices; AdamW gets the\n"
                 "  other parameters, with keywords that begin with adamw_ (adamw_lr: its learning rate).")  # fmt: skip
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------ optimizers


def build(cfg: Any, model: Any, compile: bool | None = None, **more: Any) -> Any:
    """The optimizer of a run. `more`: keywords of a rule that are not settings, such as half=("m",)."""
    factory: Any = load(cfg.optimizer)
    groups = model.param_groups(cfg.weight_decay)
    if is_rule(factory):
        return factory(groups, **_rule_arguments(cfg), compile=compile, **more)
    names = ["lr_scale", *(name.removeprefix("adamw_") for name in cfg.coefficients)]
    made = _torch_optimizers(factory, cfg, groups, model)
    return TorchOptimizers(made, cfg.learning_rate, cfg.grad_clip or math.inf, names)


def _rule_arguments(cfg: Any) -> dict[str, Any]:
    same = {name: getattr(cfg, name) for name in RULE_FIELDS}
    max_grad_norm = cfg.grad_clip or math.inf  # inf does not clip, but steps without a finite norm are still skipped
    return cfg.coefficients | same | {"lr": cfg.learning_rate, "max_grad_norm": max_grad_norm}


def learned_and_bytes(cfg: Any) -> tuple[list[str], int]:
    """(names of the learned coefficients, bytes of optimizer state per parameter).

    Raises ValueError or TypeError for settings that the optimizer does not accept.
    """
    factory: Any = load(cfg.optimizer)
    if is_rule(factory):
        options = factory.check(**_rule_arguments(cfg))
        return list(options.learned), options.state_bytes()
    build(cfg, GPT(GPTConfig(block_size=1, vocab_size=2, n_layer=1, n_head=1, n_embd=2, bias=False)))
    return [], 8  # assumes two moments


def notes(optimizer: Any, cfg: Any) -> Iterator[str]:
    """What a user should know before the first step."""
    if getattr(optimizer, "_compiled", False):
        yield "the first step compiles the optimizer: about a minute, or seconds where the compiler's cache has it"
    if optimizer.learned and cfg.hyper_start * 10 > cfg.max_iters:
        yield (f"hyper_start={cfg.hyper_start} of max_iters={cfg.max_iters}: in a short run the coefficients learn "
               "little, set --hyper_start=0 if that is not meant")  # fmt: skip


def _torch_optimizers(factory: Any, cfg: Any, groups: list[dict[str, Any]], model: Any) -> list[Any]:
    """One optimizer; two for torch.optim.Muon, which accepts matrices only: AdamW gets the other parameters."""
    keywords: dict[str, Any] = {"lr": cfg.learning_rate, "weight_decay": cfg.weight_decay} | cfg.coefficients
    if factory is not torch.optim.Muon:
        return [_call(factory, groups, keywords)]
    adamw = {name.removeprefix("adamw_"): keywords.pop(name) for name in [*keywords] if name.startswith("adamw_")}
    hidden = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    rest = [group | {"params": [p for p in group["params"] if id(p) not in hidden]} for group in groups]
    matrices = [p for group in groups for p in group["params"] if id(p) in hidden]
    return [factory(matrices, **keywords), torch.optim.AdamW(rest, **{"lr": cfg.learning_rate} | adamw)]


def _call(factory: Any, groups: list[dict[str, Any]], keywords: dict[str, Any]) -> Any:
    try:
        accepted = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):  # implemented in C
        accepted = None
    if accepted is not None and all(p.name != "weight_decay" and p.kind != p.VAR_KEYWORD for p in accepted):
        del keywords["weight_decay"]  # the param groups have it
    try:
        optimizer = factory(groups, **keywords)
    except (ValueError, TypeError):
        raise
    except Exception as error:  # of any type: it is code of others
        raise ValueError(f"{type(error).__name__}: {error}") from error
    for needed in ("param_groups", "step", "zero_grad", "state_dict", "load_state_dict"):
        if not hasattr(optimizer, needed):
            raise ValueError(f"it made a {type(optimizer).__name__}, which is not a torch optimizer (no {needed})")
    return optimizer


class TorchOptimizers:
    """One or more torch optimizers with the interface of a RuleOptimizer without learned coefficients.

    Gradients are clipped by global norm, and a step whose gradient is not finite is skipped, which synchronizes with
    the device at every step. `lr_scale` of a param group is the ratio of its learning rate to `learning_rate`.
    """

    learned: tuple[str, ...] = ()

    def __init__(
        self, optimizers: list[Any], learning_rate: float, max_grad_norm: float, fixed: Sequence[str] = ()
    ) -> None:
        self.optimizers, self.max_grad_norm, self.fixed = optimizers, max_grad_norm, tuple(fixed)
        self.coefficients: dict[str, float] = {}
        self.hypergradients: dict[str, float] = {}
        self.grad_norm: Tensor | None = None
        self.skipped = 0  # consecutive steps
        for group in self.param_groups:
            group.setdefault("lr_scale", float(group["lr"]) / learning_rate if learning_rate else 1.0)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.skipped = 0 if torch.isfinite(self.grad_norm) else self.skipped + 1
        try:
            for optimizer in self.optimizers if not self.skipped else ():
                optimizer.step()
        except Exception as error:  # of any type: it is code of others
            if isinstance(error, RuntimeError) and (dist.is_initialized() or "memory" in str(error)):
                raise  # of another process, or of the machine
            name, what = type(optimizer).__name__, f"{type(error).__name__}: {error}"
            raise ConfigError(f"optimizer: a step of {name} failed ({what}); NANOMADA_TRACEBACK=1 shows it") from error

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if the state belongs to another number of optimizers."""
        states = state_dict.get("optimizers", [])
        if len(states) != len(self.optimizers):
            raise ValueError("the state is of another optimizer")
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        for optimizer in _schedule_free(self):
            optimizer.train()  # checkpoints hold the parameters to evaluate


def _schedule_free(optimizer: Any) -> list[Any]:
    return [o for o in getattr(optimizer, "optimizers", ()) if hasattr(o, "eval") and hasattr(o, "train")]


@contextlib.contextmanager
def evaluating(optimizer: Any) -> Iterator[None]:
    """Inside the context, the parameters are those to evaluate and save; Schedule-Free optimizers train other ones."""
    for schedule_free in _schedule_free(optimizer):
        schedule_free.eval()
    try:
        yield
    finally:
        for schedule_free in _schedule_free(optimizer):
            schedule_free.train()
