"""Perplexity under three named protocols. A protocol cuts a stream of token ids into windows; `score` does the rest.

The same model and text give very different perplexities under different protocols, so a number means nothing without
its protocol's name:

- `paper`: the rows of a text, each tokenised on its own and followed by end-of-text, cut into windows that do not
  overlap (MADA's authors' code; the trainer's validation is the same on tokens). exp(mean nats per token).
- `strided`: the rows joined by blank lines into one text, read by a window that advances by `stride` and scores only
  what none before it scored (transformers' guide "Perplexity of fixed-length models", but for its weights: it counts
  each later window one target short, a relative 3e-7 where it was measured). exp(mean nats per token).
- `lm_eval`: the tasks `wikitext`, `lambada_openai` and `lambada_standard` of lm-evaluation-harness 0.4. Wikitext:
  documents without the tokeniser's marks, each after an end-of-text; exp(nats per word of the original). LAMBADA: the
  last word of each passage; exp(mean nats per word) and how often the likeliest tokens are that word.

Names: a window reads `length` ids, of which the last is only a target, and scores its last `scored` targets.
"""

from __future__ import annotations

import re
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
from data.tokenizer import GPT2Tokenizer, Tokenizer, from_manifest
from model import GPT
from runtime import checkpoint, huggingface
from runtime.checkpoint import CheckpointError
from runtime.parallel import World

# Logits held at a time, at most, whatever the batch: 32 MB in float32 is near a CPU's cache, a GPU wants large matmuls
LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}
PIECE = 1 << 18  # ids decoded at a time


class Windows(NamedTuple):
    """Where the windows of a protocol lie in its stream of ids; int64 (windows,) each."""

    starts: np.ndarray
    lengths: np.ndarray  # ids read, inputs and the last target: 2 to window + 1
    scored: np.ndarray  # of the last targets: 1 to length - 1

    @staticmethod
    def of(rows: Iterable[tuple[int, int, int]]) -> Windows:
        """From (start, length, scored) of each."""
        table = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
        return Windows(*table.T)


class Stream(NamedTuple):
    """The ids that windows are cut from: `read(start, length)` gives int64 (length,)."""

    read: Callable[[int, int], np.ndarray]
    tokens: int  # ids in it
    words: int  # of its text, separated by white space

    @staticmethod
    def of(ids: np.ndarray, words: int) -> Stream:
        return Stream(lambda start, length: ids[start : start + length].astype(np.int64), len(ids), words)


# The protocols: windows


def paper_windows(tokens: int, window: int) -> Windows:
    """Windows of `window` inputs side by side; what is left at the end is left out, as in validation."""
    return Windows.of((i * window, window + 1, window) for i in range((tokens - 1) // window))


def strided_windows(tokens: int, window: int, stride: int) -> Windows:
    """Windows of `window` ids (so window - 1 inputs) every `stride`, to the last id.

    The first scores all but its first id, which has nothing before it; each later one its ids beyond the one before.
    So every target has at least window - stride ids before it. With stride = window the first id of each window is
    not scored at all: that is how the guide's "without overlap" goes.
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
    """A document of `tokens` ids behind one end-of-text, which lies at `start`: each id is scored once.

    Windows side by side, but the last is moved back until it is full and scores what is left.
    """
    done = min(window, tokens)
    if done:
        yield start, done + 1, done
    while done < tokens:
        scored = min(window, tokens - done)
        done += scored
        yield start + done - window, window + 1, scored


# The protocols: texts


def row_stream(rows: Iterable[str], tokenizer: Tokenizer) -> Stream:
    """`paper`: each row on its own, end-of-text after each, blank ones too."""
    words, parts, end = 0, [], [tokenizer.end_of_text]
    for row in rows:
        words += len(row.split())
        parts += [tokenizer.encode(row), np.array(end, dtype=np.uint16)]
    return Stream.of(np.concatenate(parts), words)


def joined_stream(rows: Iterable[str], tokenizer: Tokenizer) -> Stream:
    """`strided`: one text, the rows with a blank line between them."""
    text = "\n\n".join(rows)
    return Stream.of(tokenizer.encode(text), len(text.split()))


def token_stream(tokens: Tokens, tokenizer: Tokenizer) -> Stream:
    """A prepared set as it is. Its words are counted in the decoded text."""
    words, inside = 0, False  # a word may go on from one piece to the next
    for start in range(0, len(tokens), PIECE):
        ids = tokens.windows(np.array([start]), min(PIECE, len(tokens) - start))[0].tolist()
        text = "".join(_decoded(ids, tokenizer))
        words += len(text.split()) - (inside and text[:1].strip() != "")
        inside = text[-1:].strip() != ""
    return Stream(lambda start, length: tokens.windows(np.array([start]), length)[0], len(tokens), words)


def _decoded(ids: list[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of ids, an end-of-text as a line break."""
    begin = 0
    for i in [i for i, token in enumerate(ids) if token == tokenizer.end_of_text]:
        yield tokenizer.decode(ids[begin:i]) + "\n"
        begin = i + 1
    yield tokenizer.decode(ids[begin:])


def wikitext_documents(rows: Iterable[str]) -> Iterator[str]:
    """The articles of Wikitext's rows, with their line breaks; an article begins at a heading of the first level.

    As the data set wikitext_document_level, which the harness reads: its lines are those of the raw file, where a
    blank line holds one space.
    """
    article: list[str] = []
    for row in [*rows, None]:  # the file ends with a line break, so after it comes one more line, an empty one
        line = "" if row is None else row.removesuffix("\n") or " "
        title = line.replace("= = =", "===").replace("= =", "==").strip()
        if title.startswith("= ") and title.endswith(" ="):
            if any(other.strip() for other in article):
                yield "\n".join(article)
            article = []
        article.append(line)
    yield "\n".join(article)


# What Wikitext's tokeniser did, undone: the harness's list, in its order. The second pattern was meant for years ('90s)
# and, with its slashes, fits no text; it is kept because the numbers to compare with were made with it.
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
    """A document of Wikitext as its author may have typed it."""
    for pattern, replacement in UNDO:
        document = re.sub(pattern, replacement, document)
    return document


def wikitext_stream(rows: Iterable[str], tokenizer: Tokenizer, window: int) -> tuple[Stream, Windows]:
    """`lm_eval` on Wikitext. Words are counted as the harness does: pieces between white space, empty ones too."""
    words, start, parts = 0, 0, []
    windows: list[tuple[int, int, int]] = []
    for document in wikitext_documents(rows):
        ids = tokenizer.encode(detokenized(document))
        words += len(re.split(r"\s+", document))
        windows += rolling_windows(start, len(ids), window)
        parts += [np.array([tokenizer.end_of_text], dtype=np.uint16), ids]
        start += 1 + len(ids)
    return Stream.of(np.concatenate(parts), words), Windows.of(windows)


def encode_pair(context: str, continuation: str, encode: Callable[[str], np.ndarray]) -> tuple[np.ndarray, int]:
    """(ids of both, how many of them belong to the continuation). White space between them goes with the latter."""
    end = len(context.rstrip())
    ids = encode(context + continuation)
    return ids, max(len(ids) - len(encode(context[:end])), 0)


def last_word_stream(rows: Iterable[str], tokenizer: Tokenizer, window: int) -> tuple[Stream, Windows]:
    """`lm_eval` on LAMBADA: each passage, its last word scored. What is too long loses its beginning."""
    start, parts, windows = 0, [], []
    for row in rows:
        context, _, word = row.rpartition(" ")
        ids, scored = encode_pair(context, " " + word, tokenizer.encode)
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
    dataset: str | None  # that it was trained on, where that is known
    facts: dict[str, Any]  # which model this is, for the record
    record: Path  # where the record belongs


def open_subject(out_dir: str, which: str = "best", weights: str | None = None) -> Subject:
    """The best or newest checkpoint of a run; with `weights`, a model in Hugging Face's format instead.

    Raises:
        CheckpointError, DataError: it is not there or damaged; its tokenizer is not to be had.
    """
    if weights:
        model, folder = huggingface.load(weights), huggingface.find(weights)
        tokenizer: Tokenizer = GPT2Tokenizer()
        if model.config.vocab_size != tokenizer.vocab_size:
            raise CheckpointError(f"{folder} has {model.config.vocab_size} tokens, GPT-2's tokenizer has "
                                  f"{tokenizer.vocab_size}: evaluate the run that it comes from (--out_dir)")
        facts: dict[str, Any] = {"weights": str(weights), "sha256": file_sha256(folder / "model.safetensors")}
        return Subject(model, tokenizer, None, facts, folder / "evaluation.json")
    chosen, config, model = checkpoint.open_model(out_dir, which)
    dataset = config["dataset"]
    tokenizer = GPT2Tokenizer()
    if model.config.vocab_size != tokenizer.vocab_size:  # GPT-2's needs no data set to be there
        prepared = open_dataset(dataset, prepare=True)
        tokenizer = from_manifest(prepared.manifest, prepared.folder / "manifest.json")
    facts = {"checkpoint": chosen.path.name, "step": chosen.step, "val_loss": chosen.val_loss, "sha256": chosen.sha256}
    return Subject(model, tokenizer, dataset, facts, chosen.path.with_suffix(".evaluation.json"))


class Scores(NamedTuple):
    """What a model makes of each window."""

    nll: np.ndarray  # float64 (windows,): nats, summed over the scored targets
    greedy: np.ndarray  # bool (windows,): whether each scored target was the likeliest token


@torch.no_grad()
def score(
    model: GPT, stream: Stream, windows: Windows, batch_size: int, world: World, label: str | None = None,
    look: bool = True,
) -> Scores:  # fmt: skip
    """Score all windows, which the processes of `world` share out among them; all get all results.

    Windows of like length share a batch, and a batch is the same whoever works on it: the number of processes changes
    no digit. The head is applied to scored positions only.

    Args:
        label: before the progress bar of the first process; None: no bar.
        look: for the likeliest token as well, a quarter of a small model's time; without it `greedy` is False.
    """
    count = len(windows.starts)
    order = np.argsort(-windows.lengths, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    nll = torch.zeros(count, dtype=torch.float64, device=world.device)
    greedy = torch.zeros(count, dtype=torch.float64, device=world.device)
    model.eval()
    with tqdm(desc=label, total=int(windows.scored.sum()), unit="tok", unit_scale=True, leave=False,
              disable=None if label and world.rank == 0 else True) as bar:
        for turn in range(0, len(batches), world.size):
            if turn + world.rank < len(batches):
                batch = batches[turn + world.rank]  # (B)
                rows = torch.from_numpy(batch).to(world.device)
                nll[rows], greedy[rows] = _score_batch(model, stream, windows, batch, world, look)
            bar.update(int(sum(windows.scored[batch].sum() for batch in batches[turn : turn + world.size])))
    if world.size > 1:
        dist.all_reduce(nll)  # each window is zero with all processes but one
        dist.all_reduce(greedy)
    return Scores(nll.cpu().numpy(), greedy.cpu().numpy() > 0)


def _score_batch(
    model: GPT, stream: Stream, windows: Windows, batch: np.ndarray, world: World, look: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and greediness of the windows number `batch`; float64 (B) each."""
    B, T = len(batch), int(windows.lengths[batch].max()) - 1
    step = max(LOGITS[world.device.type] // model.config.padded_vocab_size, 1)
    ids = np.zeros((B, T + 1), dtype=np.int64)  # padded at the right, where no scored position looks
    scored = np.zeros((B, T), dtype=bool)
    for row, i in enumerate(batch):
        length = int(windows.lengths[i])
        ids[row, :length] = stream.read(int(windows.starts[i]), length)
        scored[row, length - 1 - windows.scored[i] : length - 1] = True
    mask, targets = torch.from_numpy(scored), torch.from_numpy(ids[:, 1:][scored])  # (B, T); (S), S targets in all
    mask, targets = mask.to(world.device), world.move(targets)
    nll = torch.zeros(B, T, dtype=torch.float64, device=world.device)
    missed = torch.zeros(B, T, dtype=torch.bool, device=world.device)
    with world.autocast():
        x = model.hidden(world.move(torch.from_numpy(ids[:, :-1])))[mask]  # (S, C)
        losses, misses = [], []
        for some, target in zip(x.split(step), targets.split(step), strict=True):
            logits = model.head(some)  # (s, P)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse to add up
            losses.append(F.cross_entropy(logits, target, reduction="none"))
            misses.append(logits.argmax(-1) != target if look else torch.ones_like(target, dtype=torch.bool))
    nll[mask], missed[mask] = torch.cat(losses).double(), torch.cat(misses)  # sums over rows have a fixed order
    return nll.sum(1), (~missed.any(1)).double()
