"""lm-evaluation-harness's command line with one more model, `nanomada`, for checkpoints of this project.

    pip install -c constraints.txt ".[harness]"
    python -m evaluation.harness --model nanomada --model_args out_dir=out/gpt2_mada --tasks wikitext,lambada_openai
    python -m evaluation.harness --model nanomada --model_args weights=gpt2 --tasks lambada --batch_size 32

One process only. evaluate.py gives the same numbers for these two tasks on many processes, without the harness.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data import DataError
from evaluation import perplexity
from evaluation.perplexity import Stream, Windows
from runtime import parallel
from runtime.checkpoint import CheckpointError

try:
    import lm_eval.models  # noqa: F401 (registers theirs)
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    sys.exit(f'harness.py: lm-evaluation-harness is missing ({missing}): pip install -c constraints.txt ".[harness]"')


@register_model("nanomada")
class NanoMADA(TemplateLM):
    """A checkpoint of a run, or weights in Hugging Face's format, as the harness sees a model.

    Args: as the fields of evaluate.py's Config by the same names.
    """

    def __init__(
        self,
        out_dir: str = "out/quickstart",
        which: str = "best",
        weights: str | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str = "float32",
        **_: Any,  # arguments that the harness gives to every model, such as max_batch_size
    ) -> None:
        super().__init__()
        self.subject = perplexity.open_subject(out_dir, which, weights)
        if self.subject.tokenizer.end_of_text is None:
            raise DataError(f"{out_dir} was trained on {self.subject.tokenizer.name} tokens; the harness's tasks need"
                            " GPT-2's")
        if problem := next(parallel.device_problems(device or "auto"), None):
            raise DataError(problem[1])
        if dtype not in ("auto", "float32", "bfloat16"):
            raise DataError(f"dtype={dtype!r} must be auto, float32 or bfloat16")
        self.world = parallel.join(device or "auto", dtype, timeout=1800)
        self.batch_size = 8 if str(batch_size).startswith("auto") else int(batch_size)
        self.model = self.subject.model.to(self.world.device).eval()

    @property
    def eot_token_id(self) -> int:
        assert self.subject.tokenizer.end_of_text is not None
        return self.subject.tokenizer.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.subject.tokenizer.encode(string).tolist()

    def _score(self, ids: list[list[int]], windows: list[tuple[int, int, int]]) -> perplexity.Scores:
        stream = Stream.of(np.array([*itertools.chain(*ids)], dtype=np.int64), 0)
        return perplexity.score(self.model, stream, Windows.of(windows), self.batch_size, self.world, "scoring")

    def _loglikelihood_tokens(self, requests: list[tuple], **_: Any) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of each continuation; a request is ((context,
        continuation), ids of the context, ids of the continuation)."""
        longest = self.model.config.block_size
        ids, windows, start = [], [], 0
        for _texts, context, continuation in requests:
            if len(continuation) > longest:
                raise DataError(f"a continuation of {len(continuation)} tokens is longer than block_size={longest}")
            ids.append((context + continuation)[-(longest + 1) :])
            windows.append((start, len(ids[-1]), len(continuation)))
            start += len(ids[-1])
        scores = self._score(ids, windows)
        return [(-nll, bool(greedy)) for nll, greedy in zip(scores.nll.tolist(), scores.greedy, strict=True)]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each document, after an end-of-text."""
        ids, windows, owners, start = [], [], [], 0
        for i, request in enumerate(requests):
            ids.append([self.eot_token_id, *self.tok_encode(request.args[0])])
            new = [*perplexity.rolling_windows(start, len(ids[-1]) - 1, self.model.config.block_size)]
            windows += new
            owners += [i] * len(new)
            start += len(ids[-1])
        return (-np.bincount(owners, weights=self._score(ids, windows).nll, minlength=len(requests))).tolist()

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The greedy (or, if asked for, sampled) continuation of each context up to the first of its stop texts."""
        answers = []
        for request in tqdm(requests, disable=disable_tqdm):
            context, settings = request.args
            stops = settings.get("until") or []
            stops = [stops] if isinstance(stops, str) else stops
            length = settings.get("max_gen_toks", 256)
            temperature = settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0
            ids = torch.tensor([self.tok_encode(context) or [self.eot_token_id]], device=self.world.device)  # (1, T)
            begin, text = ids.shape[1], ""
            for _ in range(length):
                with self.world.autocast():
                    ids = self.model.generate(ids, 1, temperature)
                if ids[0, -1].item() == self.eot_token_id:
                    break
                text = self.subject.tokenizer.decode(ids[0, begin:].tolist())
                if any(stop in text for stop in stops):
                    break
            ends = [text.index(stop) for stop in stops if stop in text]
            answers.append(text[: min(ends)] if ends else text)
        return answers


def main() -> int:
    """The harness's own command line. Exit code 2: a mistake to put right."""
    from lm_eval.__main__ import cli_evaluate

    # Some tasks import Hugging Face's package `evaluate`: import it first, without our evaluate.py on the path
    here = [path for path in sys.path if Path(path or ".").resolve() == Path(__file__).resolve().parents[1]]
    sys.path[:] = [path for path in sys.path if path not in here]
    with contextlib.suppress(ImportError):
        importlib.import_module("evaluate")
    sys.path[:0] = here
    try:
        cli_evaluate()
    except (DataError, CheckpointError) as error:
        print(f"harness.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
