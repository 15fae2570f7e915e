"""Text from a checkpoint.

    python sample.py --out_dir=out/quickstart --prompt="def " --num_samples=3
    python sample.py --help
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal
from cli import MISTAKE, program, reason

import torch

from data.manifest import expand, read_text
from evaluation.perplexity import open_subject
from runtime import parallel
from runtime.settings import ConfigError, Count, Natural, NonNegative, Place, parse


@dataclass(frozen=True)
class Config:
    """What to sample from, and how."""

    out_dir: Annotated[Place, "folder of the run"] = "out/quickstart"
    which: Annotated[Literal["best", "newest"], "the checkpoint with the lowest validation loss, or the last"] = "best"
    prompt: Annotated[str, "what the text begins with; file:PATH reads it from a file"] = "\n"
    num_samples: Annotated[Count, "texts to write (count)"] = 1
    max_new_tokens: Annotated[Count, "length of each, without the prompt (tokens)"] = 500
    temperature: Annotated[NonNegative, "divides the logits; 0 always takes the likeliest token"] = 0.8
    top_k: Annotated[Count | None, "only the likeliest so many tokens are candidates (count); None: all"] = 200
    seed: Annotated[Natural, "fixes the texts"] = 1337
    device: Annotated[str, "cpu, cuda or cuda:N; auto is cuda where there is one"] = "auto"


def check(cfg: Config) -> Iterator[tuple[str, str]]:
    """(fields concerned, what is wrong and what is allowed) for each impossible value."""
    yield from parallel.device_problems(cfg.device)


def sample(cfg: Config) -> Iterator[str]:
    """The texts, prompt included, one at a time."""
    subject = open_subject(cfg.out_dir, cfg.which)
    device = torch.device(parallel.resolve(cfg.device))
    model = subject.model.to(device).eval()
    prompt = cfg.prompt
    if prompt.startswith("file:"):
        try:
            prompt = read_text(expand(prompt.removeprefix("file:")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"prompt={cfg.prompt!r} cannot be read: {reason(error)}") from None
    ids = subject.tokenizer.encode(prompt).tolist()
    if not ids:
        raise ConfigError("the prompt is empty: give it at least one character")
    torch.manual_seed(cfg.seed)
    for _ in range(cfg.num_samples):
        start = torch.tensor([ids], device=device)  # (1, T)
        try:
            text = model.generate(start, cfg.max_new_tokens, cfg.temperature, cfg.top_k)  # (1, T + max_new_tokens)
        except ValueError as error:
            raise ConfigError(f"{cfg.out_dir}: {error}") from None
        yield subject.tokenizer.decode(text[0].tolist())


@program("sample.py")
def main(argv: list[str]) -> int:
    """The command line. Ends where nobody can read on; a reader that left (`| head -1`) is no error."""
    for text in sample(parse(Config, argv, check, "sample.py")):
        print(f"{text}\n{'-' * 15}", flush=True)
        if lost := getattr(sys.stdout, "error", None):
            return 0 if isinstance(lost, BrokenPipeError) else MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
