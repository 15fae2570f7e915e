"""Saved states: what is written of an optimizer, and what a torch Adam wrote."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .flat import COLUMNS, own_storage, whole
from .options import of_group
from .values import BY_OWNER, OF_ALL

OF_TORCH = {"betas", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused",
            "decoupled_weight_decay"}  # fmt: skip
ADAM = {"m": "exp_avg", "v": "exp_avg_sq"}


def packed(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Of a column one number is written; of a part of a sharded tensor, a DTensor. Each matrix has another storage than
    the state: it may move to shared memory, as all that is sent to another process does."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state_dict["state"] = {
        i: {k: v[:1] if k in COLUMNS else whole(own_storage(v), params[i]) for k, v in state.items()}
        for i, state in state_dict["state"].items()
    }


def understood(optimizer: Any, state_dict: Mapping[str, Any]) -> tuple[dict[Tensor, Any], list[dict[str, Any]]]:
    """(state of each parameter, what the groups are updated with) of a state_dict that belongs to such an optimizer.
    Raises ValueError for one that does not."""
    if missing := {"state", "param_groups"} - state_dict.keys():
        raise ValueError(f"this is not the state of an optimizer: no {' and '.join(sorted(missing))}")
    both = optimizer.param_groups, state_dict["param_groups"]
    sizes, theirs = ([len(group["params"]) for group in groups] for groups in both)
    if sizes != theirs:
        raise ValueError(f"param groups of {theirs} parameters do not fit groups of {sizes}")
    state, groups = state_dict["state"], [dict(group) for group in state_dict["param_groups"]]
    ids = [i for group in groups for i in group.pop("params")]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = {p: state.get(i, {}) for p, i in zip(params, ids, strict=True)}
    if groups and all("betas" in group for group in groups):
        states, groups = from_adam(optimizer, states, groups)

    about = {k: group[k] for group in groups for k in ("rule", "learned", "scope") if k in group}
    learned = tuple(about.get("learned", optimizer.learned))
    if groups and "rule" not in about:
        raise ValueError(f"this state is not of one of these optimizers: groups have {', '.join(sorted(groups[0]))}")
    if groups and about["rule"] != optimizer.advance.__qualname__:
        raise ValueError(f"this state is of another rule, {about['rule']}")
    if learned != optimizer.learned:
        raise ValueError(f"this state learned {list(learned)}, this optimizer learns {list(optimizer.learned)}")
    if groups and about["scope"] != optimizer.options.scope:
        raise ValueError(f"this state has scope {about['scope']!r}, this optimizer {optimizer.options.scope!r}")
    for p, mine in optimizer.state.items():
        shapes = {k: "a number" if k in COLUMNS else tuple(p.shape) for k in mine}
        others = {k: "a number" if k in COLUMNS and torch.as_tensor(v).numel() else tuple(v.shape)
                  for k, v in states[p].items()}  # fmt: skip
        if shapes != others:
            raise ValueError(f"a parameter's state {others} does not fit {shapes}")
    for group, its in zip(optimizer.param_groups, groups, strict=True):
        for k in its.keys() & ({"hyper_lr", "box"} | ({*BY_OWNER, *OF_ALL} - group.keys())):
            del its[k]
        of_group(optimizer.options, group | its)
        for k, value in its.items():
            ours = group.get(k)
            if isinstance(value, Tensor) and isinstance(ours, Tensor) and value.shape not in ((), ours.shape):
                raise ValueError(f"{k} of shape {tuple(value.shape)} does not fit {tuple(ours.shape)}")
    return states, groups


def from_adam(optimizer: Any, states: dict[Tensor, Any], groups: list[dict[str, Any]]) -> tuple[Any, Any]:
    """The same of a torch Adam or AdamW: exact where the rule keeps m and v alone."""
    if {"beta1", "beta2"} - optimizer.options.start.keys():
        raise ValueError("a torch Adam has beta1 and beta2, which this rule lacks")
    if more := [field for field in optimizer.fields if field not in ADAM]:
        raise ValueError(f"a torch Adam has no {', '.join(more)}: make an optimizer that keeps m and v alone, as "
                         "HyperAdam, or MADA learning beta1, beta2 and c")  # fmt: skip
    found = {}
    for p, mine in optimizer.state.items():
        theirs = states[p] or {"step": 0, **{k: torch.zeros_like(p) for k in ADAM.values()}}  # it had no step
        if odd := sorted(theirs.keys() ^ {"step", *ADAM.values()}):
            raise ValueError(f"this is not the state of a torch Adam that has a counterpart here: {', '.join(odd)}")
        none = {k: 0 if k in COLUMNS else torch.zeros_like(p) for k in mine}  # no gradient is pending
        found[p] = none | {k: theirs[ADAM[k]] for k in optimizer.fields} | {"step": theirs["step"]}
    about = {"rule": optimizer.advance.__qualname__, "learned": optimizer.learned, "scope": optimizer.options.scope}
    for group in groups:
        for k in ("amsgrad", "maximize"):
            if group.get(k):
                raise ValueError(f"{k}={group[k]} of a torch Adam has no counterpart here")
        if group["weight_decay"] and not group.get("decoupled_weight_decay", True):
            raise ValueError(f"weight_decay={group['weight_decay']} of a torch Adam is not decoupled, as AdamW's is")
        beta1, beta2 = group["betas"]
        group |= about | {"beta1": beta1, "beta2": beta2, "q_steps": 0, "skipped": 0}
        group |= dict.fromkeys(("q_moves", "q_momentum", "q_square"), 0)
        for k in OF_TORCH:
            group.pop(k, None)
    return found, groups
