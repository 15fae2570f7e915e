"""Write a run's checkpoint as a folder in Hugging Face's format, or the reverse.

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
from typing import Annotated, Any, Literal
from cli import program

from runtime import checkpoint, huggingface
from runtime.checkpoint import CheckpointError
from runtime.settings import Place, parse


@dataclass(frozen=True)
class Config:
    """From where to where."""

    out_dir: Annotated[Place, "folder of the run"] = "out/quickstart"
    which: Annotated[Literal["best", "newest"], "the checkpoint with the lowest validation loss, or the last"] = "best"
    folder: Annotated[Place, "with config.json, model.safetensors; --from_folder: also a name in DATA_MIRROR"] = ""
    from_folder: Annotated[bool, "the other way: write the folder's model as a checkpoint into out_dir"] = False
    one_file: Annotated[bool, "write a ckpt_*.pt into folder instead, also from a sharded checkpoint"] = False
    force: Annotated[bool, "overwrite files that are in folder already"] = False
    dataset: Annotated[Place, "for --from_folder: the data set with the checkpoint's tokenizer"] = "shakespeare"


def check(cfg: Config) -> Iterator[tuple[str, str]]:
    """(fields concerned, what is wrong and what is allowed) for each impossible value."""
    if not cfg.folder:
        yield "folder", "name a folder with --folder=..."
    if cfg.from_folder and cfg.one_file:
        yield "from_folder one_file", "from_folder and one_file exclude each other: give one"


def export(cfg: Config) -> str:
    """What was done, in words. Raises CheckpointError for what the user can put right."""
    out_dir, folder = cfg.out_dir, cfg.folder
    if cfg.from_folder:
        model = huggingface.load(cfg.folder)
        # "none" is not an optimizer of train.py: no run resumes from it, but one can start with these weights
        content = {"config": {"dataset": cfg.dataset, "optimizer": "none", "weights": cfg.folder},
                   "model_config": dataclasses.asdict(model.config), "model": model.state_dict(), "optimizer": {},
                   "seconds": 0.0}  # fmt: skip
        written = _save(out_dir, 0, None, content)
        return f"{model.num_parameters():,} parameters of {cfg.folder} are in {written.path}"
    if cfg.one_file:
        chosen = checkpoint.chosen(out_dir, cfg.which)
        written = _save(folder, chosen.step, chosen.val_loss, checkpoint.load(chosen))
        return f"{chosen.path} is in {written.path}"
    chosen, _, model = checkpoint.open_model(out_dir, cfg.which)
    tokenizer = huggingface.save(model, folder, cfg.force)
    return f"{chosen.path} is in {folder}, {'with' if tokenizer else 'without a'} tokenizer"


def _save(folder: str, step: int, val_loss: float | None, content: dict[str, Any]) -> checkpoint.Checkpoint:
    """The only checkpoint of a folder. Raises CheckpointError."""
    try:
        if checkpoint.find(folder):
            raise CheckpointError(f"{folder} holds a run already: choose another folder")
        Path(folder).mkdir(parents=True, exist_ok=True)
        return checkpoint.save(folder, step, val_loss, content, keep=1)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror})") from None


@program("export.py")
def main(argv: list[str]) -> None:
    """The command line."""
    print(export(parse(Config, argv, check, "export.py")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
