"""A run's checkpoint as a folder in Hugging Face's format, and such a folder as a run.

    python export.py --out_dir=out/gpt2_mada --folder=mada-gpt2          # for transformers' GPT2LMHeadModel
    python export.py --from_folder --folder=gpt2 --out_dir=out/gpt2      # released weights as a checkpoint of step 0
    python export.py --out_dir=out/xl --one_file --folder=out/one        # a sharded checkpoint as a single file
    python export.py --help
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from runtime import checkpoint, huggingface
from runtime.checkpoint import CheckpointError
from runtime.settings import ConfigError, HelpRequested, parse


@dataclass(frozen=True)
class Config:
    """From where to where."""

    out_dir: Annotated[str, "folder of the run"] = "out/quickstart"
    which: Annotated[Literal["best", "newest"], "the checkpoint with the lowest validation loss, or the last"] = "best"
    folder: Annotated[str, "with config.json and model.safetensors; for --from_folder also a name in DATA_MIRROR"] = ""
    from_folder: Annotated[bool, "the other way: write the folder's model as a checkpoint into out_dir"] = False
    one_file: Annotated[bool, "write a ckpt_*.pt into folder instead, whatever the checkpoint's form"] = False
    dataset: Annotated[str, "for --from_folder: the checkpoint names it, for its tokenizer"] = "shakespeare"


def check(cfg: Config) -> Iterator[tuple[str, str]]:
    """(fields concerned, what is wrong and what is allowed) for each impossible value."""
    if not cfg.folder:
        yield "folder", "name a folder with --folder=..."
    if cfg.from_folder and cfg.one_file:
        yield "from_folder one_file", "from_folder and one_file are two different ways: give one"


def export(cfg: Config) -> str:
    """What was done, in words. Raises CheckpointError for what the user can put right."""
    if cfg.from_folder:
        if checkpoint.find(cfg.out_dir):
            raise CheckpointError(f"{cfg.out_dir} holds a run already: choose another out_dir")
        model = huggingface.load(cfg.folder)
        content = {
            # "none" is no optimizer of train.py: to go on from these weights, start a run with them
            "config": {"dataset": cfg.dataset, "optimizer": "none", "weights": cfg.folder},
            "model_config": dataclasses.asdict(model.config),
            "model": model.state_dict(),
            "optimizer": {},
            "seconds": 0.0,
        }
        try:
            Path(cfg.out_dir).mkdir(parents=True, exist_ok=True)
            written = checkpoint.save(cfg.out_dir, 0, None, content, keep=1)
        except OSError as error:
            raise CheckpointError(f"{cfg.out_dir} cannot be written ({error.strerror})") from None
        return f"{model.num_parameters():,} parameters of {cfg.folder} are in {written.path}"
    if cfg.one_file:
        chosen = (checkpoint.best if cfg.which == "best" else checkpoint.newest)(cfg.out_dir)
        return _one_file(chosen, Path(cfg.folder))
    chosen, _, model = checkpoint.open_model(cfg.out_dir, cfg.which)
    tokenizer = huggingface.save(model, cfg.folder)
    return f"{chosen.path} is in {cfg.folder}, {'with' if tokenizer else 'without a'} tokenizer"


def _one_file(chosen: checkpoint.Checkpoint, folder: Path) -> str:
    if checkpoint.find(folder):
        raise CheckpointError(f"{folder} holds a run already: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = checkpoint.save(folder, chosen.step, chosen.val_loss, checkpoint.load(chosen), keep=1)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror})") from None
    return f"{chosen.path} is in {written.path}"


def main(argv: list[str]) -> int:
    """The command line. Exit code 0: done; 2: a mistake to put right."""
    try:
        print(export(parse(Config, argv, check, "export.py")))
    except HelpRequested as text:
        print(text)
    except (ConfigError, CheckpointError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
