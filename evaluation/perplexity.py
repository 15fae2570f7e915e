"""Perplexity under three named protocols. A protocol cuts a stream of token ids into windows, `score` sums their loss.

The same model and text give very different perplexities under different protocols:

- `paper`: each row of the text is tokenised on its own and followed by end-of-text; windows do not overlap (the code
  of MADA's authors, and the trainer's validation). exp(mean nats per token).
- `strided`: the rows are joined by blank lines; a window advances by `stride` and scores the tokens that no earlier
  window scored (transformers' guide "Perplexity of fixed-length models"; the guide weights each later window one
  target short, a relative difference of 3e-7 where measured). exp(mean nats per token).
- `lm_eval`: the tasks `wikitext`, `lambada_openai` and `lambada_standard` of lm-evaluation-harness 0.4. Wikitext:
  detokenised documents, each after an end-of-text; exp(nats per word of the original). LAMBADA: the last word of each
  passage; exp(mean nats per word), and the accuracy of greedy decoding.

A window reads `length` ids, of which the last is only a target, and scores its last `scored` targets.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from data import DataError, Tokens, open_dataset
from data.manifest import file_sha256
from data.tokenizer import GPT2Tokenizer, Tokenizer
from model import GPT
from runtime import checkpoint, huggingface
from runtime.checkpoint import CheckpointError
from runtime.parallel import World

# Most logits held at a time: on a CPU 32 MB, about its cache; a GPU needs large matmuls
LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}
PIECE = 1 << 18  # ids decoded at a time, to count words


class Windows(NamedTuple):
    """The windows of a protocol in its stream of ids; int64 (windows,) each."""

    starts: np.ndarray
    lengths: np.ndarray  # ids read, the last target included: 2 to window + 1
    scored: np.ndarray  # targets that count, the last of the window: 1 to length - 1

    @staticmethod
    def of(rows: Iterable[tuple[int, int, int]]) -> Windows:
        """From (start, length, scored) of each."""
        return Windows(*np.array(list(rows), dtype=np.int64).reshape(-1, 3).T)


class Stream(NamedTuple):
    """The ids that windows are cut from: `read(start, length)` gives int64 (length,)."""

    read: Callable[[int, int], np.ndarray]
    tokens: int  # number of ids
    words: int  # number of words of the text, separated by white space

    @staticmethod
    def of(ids: np.ndarray, words: int) -> Stream:
        return Stream(lambda start, length: ids[start : start + length].astype(np.int64), len(ids), words)


# The protocols: windows


def paper_windows(tokens: int, window: int) -> Windows:
    """Adjacent windows of `window` inputs; an incomplete one at the end is dropped, as in validation."""
    return Windows.of((i * window, window + 1, window) for i in range((tokens - 1) // window))


def strided_windows(tokens: int, window: int, stride: int) -> Windows:
    """Windows of `window` ids (window - 1 inputs) every `stride`, to the last id.

    The first scores all but its first id, each later one the ids beyond the end of the one before, so every target has
    at least window - stride ids of context. With stride = window the first id of each window is never scored, as in the
    guide.
    """
    rows, scored_to = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        rows.append((begin, end - begin, end - max(scored_to, begin + 1)))
        scored_to = end
        if end == tokens:
            break
    return Windows.of(row for row in rows if row[2] > 0)


def rolling_windows(start: int, tokens: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(start, length, scored) of the windows of a document: an end-of-text at `start`, then `tokens` ids, each scored
    once. Windows are adjacent, but the last is moved back until it is full and scores the rest."""
    done = min(window, tokens)
    if done:
        yield start, done + 1, done
    while done < tokens:
        scored = min(window, tokens - done)
        done += scored
        yield start + done - window, window + 1, scored


# The protocols: texts


def row_stream(rows: Iterable[str], tokenizer: Tokenizer) -> Stream:
    """`paper`: each row, blank ones too, tokenised on its own with an end-of-text after it."""
    words, parts = 0, []
    for row in rows:
        words += len(row.split())
        parts += [tokenizer.encode(row), np.array([tokenizer.end_of_text], dtype=np.uint16)]
    return Stream.of(np.concatenate(parts), words)


def joined_stream(rows: Iterable[str], tokenizer: Tokenizer) -> Stream:
    """`strided`: one text, the rows with a blank line between them."""
    text = "\n\n".join(rows)
    return Stream.of(tokenizer.encode(text), len(text.split()))


def token_stream(tokens: Tokens, tokenizer: Tokenizer) -> Stream:
    """A prepared set as it is. Its words are counted in the decoded text, where an end-of-text is a line break."""
    end = tokenizer.end_of_text
    line_break = 0 if end is None else tokenizer.encode("\n")[0]
    words, inside = 0, False  # inside: the piece before ended within a word
    for start in range(0, len(tokens), PIECE):
        ids = tokens.windows(np.array([start]), min(PIECE, len(tokens) - start))[0]
        text = tokenizer.decode((ids if end is None else np.where(ids == end, line_break, ids)).tolist())
        words += len(text.split()) - (inside and not text[:1].isspace())
        inside = not text[-1:].isspace()
    return Stream(lambda start, length: tokens.windows(np.array([start]), length)[0], len(tokens), words)


def wikitext_documents(rows: Iterable[str]) -> Iterator[str]:
    """The articles of Wikitext, with their line breaks; an article begins at a heading of the first level.

    As in wikitext_document_level, the data set that the harness reads: the lines of the raw file, where a blank line
    holds one space.
    """
    article: list[str] = []
    for row in [*rows, None]:  # None: the empty line after the last line break of the file
        line = "" if row is None else row.removesuffix("\n") or " "
        title = line.replace("= = =", "===").replace("= =", "==").strip()
        if title.startswith("= ") and title.endswith(" ="):
            if any(other.strip() for other in article):
                yield "\n".join(article)
            article = []
        article.append(line)
    yield "\n".join(article)


# The harness's patterns, in its order, which undo Wikitext's tokenisation. The second, with its slashes, matches
# nothing; it is kept because published numbers were made with it.
UNDO: Sequence[tuple[str, str]] = (
    (r"s '", r"s'"), (r"/' [0-9]/", r"/'[0-9]/"),
    (r" @-@ ", r"-"), (r" @,@ ", r","), (r" @\.@ ", r"."),
    (r" : ", r": "), (r" ; ", r"; "), (r" \. ", r". "), (r" ! ", r"! "), (r" \? ", r"? "), (r" , ", r", "),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", r"===="), (r"= = =", r"==="), (r"= =", r"=="),
    (r" ° ", r"°"), (r" \n", r"\n"), (r"\n ", r"\n"), (r" N ", r" 1 "), (r" 's", r"'s"),
)  # fmt: skip


def detokenized(document: str) -> str:
    """A document of Wikitext with its tokenisation undone."""
    for pattern, replacement in UNDO:
        document = re.sub(pattern, replacement, document)
    return document


def wikitext_stream(rows: Iterable[str], tokenizer: Tokenizer, window: int) -> tuple[Stream, Windows]:
    """`lm_eval` on Wikitext. Words are counted as the harness does: pieces between white space, empty ones included."""
    words, start, parts = 0, 0, []
    windows: list[tuple[int, int, int]] = []
    for document in wikitext_documents(rows):
        ids = tokenizer.encode(detokenized(document))
        words += len(re.split(r"\s+", document))
        windows += rolling_windows(start, len(ids), window)
        parts += [np.array([tokenizer.end_of_text], dtype=np.uint16), ids]
        start += 1 + len(ids)
    return Stream.of(np.concatenate(parts), words), Windows.of(windows)


def last_word_stream(rows: Iterable[str], tokenizer: Tokenizer, window: int) -> tuple[Stream, Windows]:
    """`lm_eval` on LAMBADA: scores the last word of each passage; a passage that is too long loses its beginning.

    White space before the word is scored with it, as in the harness.
    """
    start, parts, windows = 0, [], []
    for row in rows:
        context, _, word = row.rpartition(" ")
        ids = tokenizer.encode(row)
        scored = len(ids) - len(tokenizer.encode(context.rstrip()))
        if not 0 < scored <= window:
            raise DataError(f"window={window} is too short for the last word {word!r} ({scored} tokens)")
        ids = ids[-(window + 1) :]
        windows.append((start, len(ids), scored))
        parts.append(ids)
        start += len(ids)
    return Stream.of(np.concatenate(parts), len(windows)), Windows.of(windows)


# The model


class Subject(NamedTuple):
    """A model to measure."""

    model: GPT  # on the CPU
    tokenizer: Tokenizer
    dataset: str | None  # that it was trained on, where known
    facts: dict[str, Any]  # identify the model in the record
    record: Path  # default place of the record


def open_subject(out_dir: str, which: str = "best", weights: str | None = None) -> Subject:
    """The best or newest checkpoint of a run; with `weights`, a model in Hugging Face's format instead.

    Raises:
        CheckpointError, DataError: it is missing, damaged or not finite; its tokenizer is not available.
    """
    tokenizer: Tokenizer = GPT2Tokenizer()
    if weights:
        model, folder = huggingface.load(weights), huggingface.find(weights)
        if model.config.vocab_size != tokenizer.vocab_size:
            raise CheckpointError(f"{folder} has {model.config.vocab_size} tokens, GPT-2's tokenizer has "
                                  f"{tokenizer.vocab_size}: evaluate the run that it comes from (--out_dir)")
        dataset: str | None = None
        record = folder / "evaluation.json"
        facts: dict[str, Any] = {"weights": weights, "sha256": file_sha256(folder / huggingface.WEIGHTS)}
    else:
        chosen, config, model = checkpoint.open_model(os.path.expanduser(out_dir), which)
        with checkpoint.reading(chosen.path):
            dataset = str(config["dataset"])
        record = chosen.path.with_suffix(".evaluation.json")
        facts = {name: getattr(chosen, name) for name in ("step", "val_loss", "sha256")}
        facts = {"checkpoint": chosen.path.name} | facts
        if model.config.vocab_size != tokenizer.vocab_size:  # GPT-2's tokenizer does not need the data set
            tokenizer = open_dataset(dataset, prepare=True).tokenizer
    return Subject(model, tokenizer, dataset, facts, record)


class Scores(NamedTuple):
    """Results for each window."""

    nll: np.ndarray  # float64 (windows,): nats, summed over the scored targets
    greedy: np.ndarray  # bool (windows,): whether each scored target was the likeliest token


@torch.no_grad()
def score(
    model: GPT, stream: Stream, windows: Windows, batch_size: int, world: World, label: str | None = None,
    look: bool = True,
) -> Scores:  # fmt: skip
    """Score all windows, shared out among the processes of `world`; all of them get all results.

    Windows of similar length share a batch, whose content does not depend on the number of processes: it changes no
    digit. The head is applied to scored positions only.

    Args:
        label: of the progress that the first process shows; None: shows none.
        look: compute `greedy` too, a quarter of a small model's time; without it `greedy` is False.
    """
    count = len(windows.starts)
    order = np.argsort(-windows.lengths, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    results = torch.zeros(2, count, dtype=torch.float64, device=world.device)  # nll, greedy
    model.eval()
    with tqdm(desc=label, total=int(windows.scored.sum()), unit="tok", unit_scale=True, leave=False,
              disable=label is None or world.rank > 0, mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        for first in range(0, len(batches), world.size):
            together = batches[first : first + world.size]
            if world.rank < len(together):
                batch = together[world.rank]  # (B)
                results[:, torch.from_numpy(batch).to(world.device)] = torch.stack(
                    _score_batch(model, stream, windows, batch, world, look))  # fmt: skip
            bar.update(int(sum(windows.scored[batch].sum() for batch in together)))
    if world.size > 1:
        dist.all_reduce(results)  # a window is zero on all processes but one
    nll, greedy = results.cpu().numpy()
    return Scores(nll, greedy > 0)


def _score_batch(
    model: GPT, stream: Stream, windows: Windows, batch: np.ndarray, world: World, look: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and greediness of the windows with the indices `batch`; float64 (B) each."""
    B, T = len(batch), int(windows.lengths[batch].max()) - 1
    step = max(LOGITS[world.device.type] // model.config.padded_vocab_size, 1)
    ids = np.zeros((B, T + 1), dtype=np.int64)  # padded at the right, after all scored positions
    scored = np.zeros((B, T), dtype=bool)
    for row, i in enumerate(batch):
        length = int(windows.lengths[i])
        ids[row, :length] = stream.read(int(windows.starts[i]), length)
        scored[row, length - 1 - windows.scored[i] : length - 1] = True
    mask = torch.from_numpy(scored).to(world.device)  # (B, T)
    targets = world.move(torch.from_numpy(ids[:, 1:][scored]))  # (S), S scored targets in all
    nll = torch.zeros(B, T, dtype=torch.float64, device=world.device)
    missed = torch.zeros(B, T, dtype=torch.bool, device=world.device)
    with world.autocast():
        x = model.hidden(world.move(torch.from_numpy(ids[:, :-1])))[mask]  # (S, C)
        losses, misses = [], []
        for some, target in zip(x.split(step), targets.split(step), strict=True):
            logits = model.head(some)  # (s, P)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for the sum
            losses.append(F.cross_entropy(logits, target, reduction="none"))
            misses.append(logits.argmax(-1) != target if look else torch.ones_like(target, dtype=torch.bool))
    nll[mask], missed[mask] = torch.cat(losses).double(), torch.cat(misses)  # rows are summed in a fixed order
    return nll.sum(1), (~missed.any(1)).double()
