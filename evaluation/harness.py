"""lm-evaluation-harness's command line with one more model, `nanomada`, for checkpoints of this project.

    pip install -c constraints.txt ".[harness]"
    python -m evaluation.harness --model nanomada --model_args out_dir=out/gpt2_mada --tasks wikitext,lambada_openai
    python -m evaluation.harness --model nanomada --model_args weights=gpt2 --tasks lambada --batch_size 32

The checkpoint is exported to a temporary folder and evaluated by the harness's own model `hf`. evaluate.py gives the
same numbers for these tasks without the harness.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any
from cli import program

from data import DataError
from evaluation.perplexity import open_subject
from runtime import huggingface

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as missing:
    sys.exit(f'harness.py: lm-evaluation-harness is missing ({missing}): pip install -c constraints.txt ".[harness]"')


@register_model("nanomada")
class NanoMADA(HFLM):
    """A checkpoint of a run, or weights in Hugging Face's format.

    Args:
        out_dir, which, weights: as in evaluate.py's Config.
        arguments: of the harness's model `hf`: device, dtype, batch_size, ...
    """

    def __init__(
        self, out_dir: str = "out/quickstart", which: str = "best", weights: str | None = None, **arguments: Any
    ) -> None:
        subject = open_subject(out_dir, which, weights)
        if subject.tokenizer.end_of_text is None:
            raise DataError(f"{out_dir} has {subject.tokenizer.name} tokens; the harness's tasks need GPT-2's")
        with tempfile.TemporaryDirectory() as folder:
            if not huggingface.save(subject.model, folder):
                subject.tokenizer.encode("")  # raises DataError, which says how to get the tokenizer
            super().__init__(pretrained=folder, **arguments)


@program("harness.py")
def main(argv: list[str]) -> None:
    """The harness's own command line, which reads sys.argv."""
    from lm_eval.__main__ import cli_evaluate

    # Some tasks import Hugging Face's package `evaluate`: import it first, without our evaluate.py on the path
    here = [path for path in sys.path if Path(path or ".").resolve() == Path(__file__).resolve().parents[1]]
    sys.path[:] = [path for path in sys.path if path not in here]
    with contextlib.suppress(ImportError):
        importlib.import_module("evaluate")
    sys.path[:0] = here
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
