"""Resuming from files that were changed since: repaired from the checkpoint, or refused by name; nothing is lost."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import ends_equal, without_seconds
from processes import small_run

import sample
import train
from runtime import checkpoint
from runtime.recorder import MetricsFile


@pytest.fixture(scope="module")
def half(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, at step 6, and `whole`, the same at step 12."""
    here = tmp_path_factory.mktemp("half")
    for name, steps in (("run", 6), ("whole", 12)):
        assert train.main([*resume(corpus, here / name), f"--max_iters={steps}", "--init_from=scratch"]) == 0
    return here


def resume(corpus: str, out_dir: Path) -> list[str]:
    return [*small_run(corpus, out_dir), "--lr_decay_iters=12", "--log_interval=1", "--init_from=resume"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a byte that is not UTF-8": lambda old: old.replace(b"3", b"\xff", 1),
    "a block of NULs": lambda old: old[:100] + bytes(300) + old[400:],
    "semicolons": lambda old: old.replace(b",", b";"),
    "no header": lambda old: old.partition(b"\n")[2],
    "a row less": lambda old: b"".join(line for i, line in enumerate(old.splitlines(True)) if i != 3),
    "a number changed": lambda old: old.replace(b"1", b"2", 1),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "a folder", "a loop of links", "gone", "the last rows are gone"])
def test_metrics_are_repaired_from_the_checkpoint(
    half: Path, corpus: str, tmp_path: Path, capsys, damage: str
) -> None:
    run = shutil.copytree(half / "run", tmp_path / "run")
    path = run / "metrics.csv"
    old = path.read_bytes()
    if damage in DAMAGES:
        path.write_bytes(DAMAGES[damage](old))
        assert path.read_bytes() != old
    elif damage.startswith("the last"):
        path.write_bytes(old[:200])
    else:
        path.unlink()
        if damage == "a loop of links":
            path.symlink_to(path)
        if damage == "a folder":
            path.mkdir()
            (run / "config.json").unlink()
            (run / "config.json").mkdir()
    capsys.readouterr()
    assert train.main(resume(corpus, run)) == 0
    ends_equal(half / "whole", run)
    said = "metrics.csv is not what the checkpoint goes on from" in capsys.readouterr().out
    kept = [*run.glob("previous-*/metrics.csv")]
    assert said == bool(kept) == (damage in DAMAGES or damage in ("a folder", "a loop of links"))
    assert damage not in DAMAGES or kept[0].read_bytes() == DAMAGES[damage](old)
    assert json.loads((run / "config.json").read_text())["config"]["max_iters"] == 12


def test_a_checkpoint_of_an_earlier_version_has_no_copy(half: Path, corpus: str, tmp_path: Path, capsys) -> None:
    run = shutil.copytree(half / "run", tmp_path / "run")
    changed(run, lambda content: content.pop("metrics"))
    path = run / "metrics.csv"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"3", b"\xff", 1))
    capsys.readouterr()
    assert train.main(resume(corpus, run)) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"train.py: \S+metrics.csv is damaged \(.*\), and a checkpoint of .*\n", said)
    path.write_bytes(good + b"6")  # killed in the middle of a row
    assert train.main(resume(corpus, run)) == 0
    assert without_seconds(run) == without_seconds(half / "whole")


def changed(run: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the content of the newest checkpoint; its size and sha256 are right."""
    path = checkpoint.newest(run).path
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    facts = json.loads(path.with_suffix(".json").read_text())
    facts |= {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    del facts["check"]
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def nested(levels: int) -> list:
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"no {name}": lambda content, name=name: content.pop(name) for name in checkpoint.CONTENT},
    **{f"{name} is a text": lambda content, name=name: content.update({name: "x"}) for name in checkpoint.CONTENT},
    "a tensor less": lambda content: content["model"].pop("transformer.wpe.weight"),
    "a tensor more": lambda content: content["model"].update(more=torch.zeros(2)),
    "a tensor of another shape": lambda content: content["model"].update({"transformer.wpe.weight": torch.zeros(2)}),
    "no tensor": lambda content: content["model"].update({"transformer.wpe.weight": "x"}),
    "a million layers": lambda content: content["model_config"].update(n_layer=10**6),
    "layers in words": lambda content: content["model_config"].update(n_layer="two"),
    "no optimizer in its config": lambda content: content["config"].pop("optimizer"),
    "a state less": lambda content: content["optimizer"]["state"].popitem(),
    "a state in words": lambda content: content["optimizer"].update(state="x"),
    "no groups": lambda content: content["optimizer"].update(param_groups=[]),
    "groups in words": lambda content: content["optimizer"].update(param_groups=["x", "y"]),
    "spikes in words": lambda content: content.update(spikes={"x": 1}),
    "a pending loss in words": lambda content: content.update(pending_loss="x"),
    "metrics are numbers": lambda content: content.update(metrics=3),
    "another step": lambda content: content.update(step=5),
    "nested deeply": lambda content: content.update(config={"x": nested(200)}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    half: Path, corpus: str, tmp_path: Path, capsys, wrong: str
) -> None:
    run = shutil.copytree(half / "run", tmp_path / "run")
    path = changed(run, WRONG[wrong])
    before = sorted(run.iterdir())
    for program, argv in (("train.py", resume(corpus, run)), ("sample.py", [f"--out_dir={run}", "--max_new_tokens=1"])):
        capsys.readouterr()
        code = {"train.py": train.main, "sample.py": sample.main}[program](argv)
        said = capsys.readouterr().err
        only_training = program == "sample.py" and not re.search("tensor|layer|model", wrong)  # needs less of it
        assert (code, said.count("\n")) == (2, 1) or (only_training and not code), said
        assert not code or (said.startswith(f"{program}: ") and (path.name in said or str(run) in said)), said
    assert sorted(run.iterdir()) in (before, sorted([*before, run / ".lock"]))


def test_a_flip_in_the_json_beside_it_is_noticed(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, 500, 1.25, {"x": torch.zeros(3)}, keep=1)
    path = saved.path.with_suffix(".json")
    data, noticed = path.read_bytes(), 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found = checkpoint.find(tmp_path)
        assert found in ([], [saved]), bytes(flipped)  # a space may have become a tab
        noticed += not found
    assert noticed > 0.99 * 8 * len(data)


def test_more_coefficients_and_a_row_that_was_never_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n")
    file = MetricsFile(path, ["step", "loss", "beta1"], "step,loss\n0,1.5\n")
    file.close()
    assert path.read_text() == "step,loss,beta1\n0,1.5,\n" and file.text == path.read_text()
