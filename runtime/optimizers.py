"""Which optimizer a run has, and what may be set of it: the rules of optim/, a user's own, or any torch optimizer.

    --optimizer=mada                        a rule of optim/
    --optimizer=path/to/file.py:ClassName   a rule in a file of the user's, which is imported, that is: executed
    --optimizer=torch.optim:AdamW           a class or function (param groups, lr, weight_decay, ...) -> torch optimizer

A rule says itself which coefficients it has (`table`, `constants`): only they may be set, learned, logged and started
from another run. Nothing else lists coefficients. A torch optimizer takes keywords from --coefficients.NAME=VALUE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import GPT, GPTConfig
from optim import OPTIMIZERS, RuleOptimizer
from runtime.recorder import final_coefficients
from runtime.settings import Adapted, ConfigError, Setting, nearest

DEFAULT = "mada"


def load(spec: str) -> Any:
    """The rule (a subclass of RuleOptimizer) or the function that makes a torch optimizer. Raises ConfigError."""
    place, colon, name = spec.rpartition(":")
    if not colon:
        if spec.lower() in OPTIMIZERS:
            return OPTIMIZERS[spec.lower()]
        raise ConfigError(f"optimizer={spec!r} is not one of {', '.join(OPTIMIZERS)}{nearest(spec, OPTIMIZERS, '')}; "
                          "your own is path/to/file.py:ClassName or package:ClassName")  # fmt: skip
    try:
        module = _load_file(Path(place).expanduser()) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # a user's file can fail with anything
        raise ConfigError(f"optimizer={spec!r}: {place} cannot be imported ({type(error).__name__}: {error})") from None
    made = getattr(module, name, None)
    if not callable(made):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ConfigError(f"optimizer={spec!r}: {place} has no class or function {name!r}{nearest(name, names, '')}")
    return made


def _load_file(path: Path) -> Any:
    name = str(path.resolve())  # as a module's name it takes no other's place
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, name)
        if spec is None or spec.loader is None or not path.is_file():
            raise FileNotFoundError("there is no such file")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.append(str(path.resolve().parent))  # what it imports may lie beside it
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def is_rule(made: Any) -> bool:
    """Whether it is one of ours, or a user's of our kind: its coefficients can be learned."""
    return isinstance(made, type) and issubclass(made, RuleOptimizer)


# ------------------------------------------------------------------------------------------------------- settings


def adapt(settings: list[Setting]) -> Adapted:
    """Let the chosen optimizer decide what the settings of coefficients mean (`parse` of runtime/settings.py).

    `beta1 = 0.9` becomes an entry of `coefficients`. What config files say of coefficients that the optimizer lacks is
    left out, with a note; of hyper rates written for another optimizer, those stay that this one learns by default. On
    the command line the same is an error. The rule's own values come first, so that the result is complete.
    """
    try:
        spec = next((_spec(s) for s in reversed(settings) if s.key == "optimizer"), DEFAULT)
        made = load(spec)
    except ConfigError as error:
        return Adapted([s for s in settings if not _about_coefficients(s)], errors=[str(error)])
    rule = made if is_rule(made) else None
    names = [*rule.table, *rule.constants] if rule else []
    own: dict[str, Any] = {"coefficients": {}, "hyper_lr": {}, "hyper_momentum": 0.0}
    if rule:
        own["coefficients"] = {name: c.start for name, c in rule.table.items()} | dict(rule.constants)
        own["hyper_lr"] = {name: rule.table[name].hyper_lr for name in rule.learns}
    written_for = _written_for(settings)

    merged, said_at = dict(own), dict.fromkeys(own, "")
    others: list[Setting] = []
    left_out: dict[str, dict[str, None]] = {"": {}}  # names by field, in order
    errors: dict[str, list[str]] = {field: [] for field in own}
    for setting in settings:
        if not _about_coefficients(setting, names):
            others.append(setting._replace(value=_spec(setting)) if setting.key == "optimizer" else setting)
            continue
        field, _, entry = setting.key.partition(".")
        if field not in own:  # `beta1 = 0.9`
            field, entry = "coefficients", setting.key
        said_at[field] = setting.where
        if not entry and field != "coefficients":  # takes the place of all before it, mistakes included
            errors[field] = []
        if not entry and not isinstance(setting.value, dict):
            merged[field] = own[field] if setting.value is None else setting.value
            continue
        elsewhere = bool(setting.layer) and written_for[setting.layer] != spec
        known = names if field == "coefficients" else [*(rule.learns if elsewhere else names), "lr"] if rule else []
        kept: dict[str, Any] = {}
        for name, value in ({entry: setting.value} if entry else setting.value).items():
            if rule and name in known and field == "coefficients" and type(value) not in (int, float, type(None)):
                errors[field].append(f"{setting.where}: {name} must be a number, not {value!r}")
            elif name in known or (field == "coefficients" and not rule and not elsewhere):
                kept[name] = own[field].get(name) if value is None else value
            elif setting.layer and value is not None:
                left_out.setdefault("" if field == "coefficients" else f"{field} of ", {})[name] = None
            elif value is not None:
                errors[field].append(f"{setting.where}: {_unknown(name, field, spec, names)}")
        whole = field != "coefficients" and not entry and not elsewhere  # a whole dict takes the place of another
        merged[field] = kept if whole or not isinstance(merged[field], dict) else merged[field] | kept
    merged["coefficients"] = {name: value for name, value in merged["coefficients"].items() if value is not None}
    said = "; ".join(field + ", ".join(left) for field, left in left_out.items() if left)
    notes = [f"optimizer={spec} leaves out what the config files say of {said}"] if said else []
    found = [Setting(said_at[field], field, value) for field, value in merged.items()]
    return Adapted([*others, *found], names, [e for of_field in errors.values() for e in of_field], notes)


def _spec(setting: Setting) -> str:
    """The optimizer that a setting names; a file that lies beside the config file which names it is named from here."""
    place, colon, name = str(setting.value).rpartition(":")
    beside = Path(setting.layer).parent / place
    if colon and place.endswith(".py") and setting.layer and not Path(place).expanduser().exists() and beside.exists():
        return f"{beside}:{name}"
    return str(setting.value)


def _written_for(settings: list[Setting]) -> dict[str, str]:
    """{config file: the optimizer chosen when all of the file is read}."""
    found, current = {}, DEFAULT
    for setting in settings:
        current = _spec(setting) if setting.key == "optimizer" else current
        found[setting.layer] = current
    return found


def _about_coefficients(setting: Setting, names: Iterable[str] = ()) -> bool:
    known = {name for rule in OPTIMIZERS.values() for name in (*rule.table, *rule.constants)} | {*names}
    field = setting.key.partition(".")[0]
    return field in ("coefficients", "hyper_lr", "hyper_momentum") or field in known


def _unknown(name: str, field: str, spec: str, names: list[str]) -> str:
    if names:
        return f"{spec} has no coefficient {name!r}, it has {', '.join(names)}{nearest(name, names, '')}"
    return f"{spec} learns nothing" if field != "coefficients" else f"a keyword of {spec} is --coefficients.{name}=..."


def load_coefficients(cfg: Any) -> Any:
    """The config with the coefficients of `coefficients_from`, if it names a run or record. Raises ConfigError."""
    if cfg.coefficients_from is None:
        return cfg
    found = final_coefficients(cfg.coefficients_from, getattr(load(cfg.optimizer), "table", ()))
    cfg = dataclasses.replace(cfg, coefficients=cfg.coefficients | found)
    for _, problem in problems(cfg):
        raise ConfigError(f"coefficients_from={cfg.coefficients_from!r}: {problem}")
    return cfg


def problems(cfg: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with the optimizer's settings in a config, as `parse` wants it."""
    fields = "optimizer coefficients learning_rate weight_decay hyper_lr hyper_momentum hyper_start hyper_clip order"
    try:
        learned_and_bytes(cfg)
    except ConfigError:  # `adapt` said so
        return
    except (ValueError, TypeError) as error:
        yield fields, f"optimizer={cfg.optimizer}: {error}"


def table() -> str:
    """The coefficients of each rule, for --help."""
    lines = ["\n\nCoefficients, set by NAME = VALUE in a file or --NAME=VALUE, learned where hyper_lr names them:"]
    for optimizer, rule in OPTIMIZERS.items():
        lines.append(f"\n  {optimizer}" + (f" learns {', '.join(rule.learns)} unless hyper_lr says otherwise"
                                           if rule.learns else ""))  # fmt: skip
        for name, c in rule.table.items():
            rate = f", hyper_lr {c.hyper_lr:g}" if name in rule.learns else ""
            lines.append(f"    {name} = {c.start:g}, learned within [{c.low:g}, {c.high:g}]{rate}: {c.meaning}")
        lines += [f"    {name} = {value:g}, not learned" for name, value in rule.constants.items()]
    lines.append("\n  path/to/file.py:ClassName is a rule of yours: that file is code, and naming it executes it.\n"
                 "  torch.optim:AdamW, package:ClassName or file.py:function make any torch optimizer, with the\n"
                 "  keywords of --coefficients.NAME=VALUE; torch.optim:Muon gets the hidden matrices, AdamW the\n"
                 "  rest, with keywords that begin with adamw_ (adamw_lr: its own learning rate).")  # fmt: skip
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------ optimizers


def build(cfg: Any, model: Any, compile: bool | None = None, **more: Any) -> Any:
    """The optimizer of a run, for the parameters of `model` (its `param_groups(weight_decay)`).

    `more`: keywords of a rule that no setting is about, such as half=("m",).
    """
    made: Any = load(cfg.optimizer)
    groups = model.param_groups(cfg.weight_decay)
    if is_rule(made):
        return made(groups, **_rule_arguments(cfg), compile=compile, **more)
    return TorchOptimizers(_torch_optimizers(made, cfg, groups, model), cfg.learning_rate, cfg.grad_clip or math.inf)


def _rule_arguments(cfg: Any) -> dict[str, Any]:
    return cfg.coefficients | {
        "lr": cfg.learning_rate,
        "hyper_lr": cfg.hyper_lr,
        "hyper_momentum": cfg.hyper_momentum,
        "hyper_start": cfg.hyper_start,
        "hyper_clip": cfg.hyper_clip,
        "order": cfg.order,
        "max_grad_norm": cfg.grad_clip or math.inf,  # infinity clips nothing, but lets no NaN or infinity pass either
    }


def learned_and_bytes(cfg: Any) -> tuple[list[str], int]:
    """(names of the learned coefficients, bytes of optimizer state for each parameter), without a model.

    Raises ValueError or TypeError for settings that the optimizer does not take.
    """
    made: Any = load(cfg.optimizer)
    if is_rule(made):
        options = made.check(**_rule_arguments(cfg))
        return list(options.learned), options.state_bytes()
    build(cfg, GPT(GPTConfig(block_size=1, vocab_size=2, n_layer=1, n_head=1, n_embd=2, bias=False)))
    return [], 8  # a guess: two moments


def _torch_optimizers(made: Any, cfg: Any, groups: list[dict[str, Any]], model: Any) -> list[Any]:
    """Usually one; for torch.optim.Muon, which takes matrices alone, the usual split with AdamW."""
    keywords: dict[str, Any] = {"lr": cfg.learning_rate, "weight_decay": cfg.weight_decay} | cfg.coefficients
    if made is not torch.optim.Muon:
        return [_call(made, groups, keywords)]
    adamw = {name.removeprefix("adamw_"): keywords.pop(name) for name in [*keywords] if name.startswith("adamw_")}
    hidden = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    rest = [group | {"params": [p for p in group["params"] if id(p) not in hidden]} for group in groups]
    matrices = [p for group in groups for p in group["params"] if id(p) in hidden]
    return [made(matrices, **keywords), torch.optim.AdamW(rest, **{"lr": cfg.learning_rate} | adamw)]


def _call(made: Any, groups: list[dict[str, Any]], keywords: dict[str, Any]) -> Any:
    try:
        taken = inspect.signature(made).parameters
    except (ValueError, TypeError):  # written in C
        taken = {}  # type: ignore[assignment]
    if taken and "weight_decay" not in taken and all(p.kind != p.VAR_KEYWORD for p in taken.values()):
        del keywords["weight_decay"]  # the groups say it
    optimizer = made(groups, **keywords)
    for needed in ("param_groups", "step", "zero_grad", "state_dict", "load_state_dict"):
        if not hasattr(optimizer, needed):
            raise ValueError(f"it made a {type(optimizer).__name__}, which is no torch optimizer (no {needed})")
    return optimizer


class TorchOptimizers:
    """One torch optimizer, or several for parts of a model, as the trainer sees one of ours.

    It clips by global norm before a step and skips a step whose gradient is not finite. Nothing is learned. A group's
    learning rate keeps its ratio to `learning_rate` in `lr_scale`. To skip it waits for the device at each step.
    """

    learned: tuple[str, ...] = ()

    def __init__(self, optimizers: list[Any], learning_rate: float, max_grad_norm: float) -> None:
        self.optimizers, self.max_grad_norm = optimizers, max_grad_norm
        self.coefficients: dict[str, float] = {}
        self.hypergradients: dict[str, float] = {}
        self.grad_norm: Tensor | None = None
        self.skipped = 0  # steps in a row
        for group in self.param_groups:
            group.setdefault("lr_scale", float(group["lr"]) / learning_rate if learning_rate else 1.0)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.skipped = 0 if torch.isfinite(self.grad_norm) else self.skipped + 1
        for optimizer in self.optimizers if not self.skipped else ():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if the state is that of other optimizers."""
        states = state_dict.get("optimizers", [])
        if len(states) != len(self.optimizers):
            raise ValueError("the state is of another optimizer")
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


@contextlib.contextmanager
def evaluating(optimizer: Any) -> Iterator[None]:
    """While the weights are those to evaluate and to save: Schedule-Free optimizers train at others."""
    switched = [o for o in getattr(optimizer, "optimizers", ()) if hasattr(o, "eval") and hasattr(o, "train")]
    for one in switched:
        one.eval()
    try:
        yield
    finally:
        for one in switched:
            one.train()
