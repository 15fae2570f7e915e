"""Evaluation: tokens/s of evaluate.py's `strided` protocol beside transformers on the same weights and windows.

    python -m benchmarks.evaluate [--n_layer=12 --n_head=12 --n_embd=768] [--windows=4] [--seconds=60]
        [--block_size=1024] [--batch_size=4] [--device=cuda] [--out=FILE]

A GPT-2 with random weights, exported; random tokens. Both score windows of block_size with a stride of half of it, in
float32, taken in turn in one process; a ratio is the median over the rounds. `guide` is the loop of transformers' guide
"Perplexity of fixed-length models": one window at a time, through the model's own loss. `batched` is the most that
GPT2LMHeadModel offers without changing it: as many windows in a batch as ours, logits of all positions, one cross
entropy over those that count. Needs transformers (extra `test`).
"""

import argparse
import sys
import tempfile
from typing import Any
from cli import Mistake, program

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import interleaved, own_options, ratio, write
from benchmarks.table import show
from evaluation import perplexity
from model import GPT, GPTConfig
from runtime import huggingface, parallel


def benchmark(cfg: argparse.Namespace) -> None:
    import transformers

    world = parallel.join(cfg.device, "float32", timeout=60)
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(cfg.block_size, n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd))
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(gpt, folder)
        theirs: Any = transformers.GPT2LMHeadModel.from_pretrained(folder).eval().to(world.device)
    gpt.to(world.device)
    T, stride = cfg.block_size, cfg.block_size // 2
    ids = np.random.default_rng(0).integers(0, gpt.config.vocab_size, T + stride * (cfg.windows - 1))
    stream, windows = perplexity.Stream.of(ids, 0), perplexity.strided_windows(len(ids), T, stride)
    scored, tokens = windows.scored.tolist(), int(windows.scored.sum())
    rows = torch.from_numpy(ids).unfold(0, T, stride).contiguous()  # (windows, T)
    sums: dict[str, float] = {}

    def ours() -> None:
        sums["ours"] = perplexity.score(gpt, stream, windows, cfg.batch_size, world, look=False).nll.sum()

    @torch.no_grad()
    def guide() -> None:
        total = 0.0
        for row, count in zip(rows, scored, strict=True):
            inputs = row[None].to(world.device)
            labels = inputs.clone()
            labels[:, :-count] = -100
            total += theirs(inputs, labels=labels).loss.item() * count
        sums["guide"] = total

    @torch.no_grad()
    def batched() -> None:
        total = 0.0
        for i in range(0, len(rows), cfg.batch_size):
            inputs = rows[i : i + cfg.batch_size].to(world.device)
            labels = inputs[:, 1:].clone()
            for label, count in zip(labels, scored[i : i + cfg.batch_size], strict=True):
                label[:-count] = -100
            logits = theirs(inputs).logits[:, :-1]
            total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        sums["batched"] = total

    times = interleaved({"ours": ours, "guide": guide, "batched": batched}, str(world.device), cfg.seconds)
    for name, total in sums.items():  # all three measure the same
        assert abs(total / sums["ours"] - 1) < 1e-5, (name, sums)
    found = []
    for name, seconds in times.items():
        median, lower, upper = ratio(times, name, "ours")
        speed = tokens / float(np.median(seconds))
        found.append({"way": name, "tokens_per_second": speed, "ratio": [lower, median, upper], "seconds": seconds})
    settings = {k: v for k, v in vars(cfg).items() if k not in ("out", "device")}
    settings |= {"parameters": gpt.num_parameters(), "transformers": transformers.__version__}
    show(write(cfg.out, "evaluate", str(world.device), found, **settings))


@program("benchmarks.evaluate")
def main(argv: list[str]) -> None:
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 4, "windows": 4}
    own, _ = own_options(__doc__, argv, sizes | {"seconds": 60.0, "device": "auto", "out": ""}, more=False)
    for _, problem in parallel.device_problems(own["device"]):
        raise Mistake(problem)
    try:
        benchmark(argparse.Namespace(**own))
    except ImportError as error:
        raise Mistake(str(error)) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
