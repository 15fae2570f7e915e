"""Prepared data sets as arrays of tokens, and batches as a pure function of (seed, step, row)."""

import importlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import manifest as manifests
from data import preparation
from data.manifest import AGAIN, DTYPE, DataError, expand, reading
from data.tokenizer import from_manifest

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent


class Tokens:
    """One split: its shards, memory-mapped, read as one array of len(tokens) ids."""

    def __init__(self, shards: list[Path], vocab_size: int, name: str):
        self.name = name  # "shakespeare_char/val", for messages
        self.vocab_size = vocab_size
        self._files = shards
        with reading(name):
            maps = [np.memmap(path, dtype=DTYPE, mode="r") for path in shards]
        self._shards = [np.asarray(shard) for shard in maps]  # slices of np.memmap cost
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)  # (shards,)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The ids at starts[i] ... starts[i] + length - 1; a window may run over several shards.

        Args:
            starts: int64 (n,), each in [0, len(self) - length].
            length: tokens a window.

        Returns:
            int64 (n, length).

        Raises:
            DataError: an id beyond the vocabulary, which means that a shard was changed.
            IndexError: a window that reaches outside the split.
        """
        out = np.empty((len(starts), length), dtype=np.int64)
        if len(starts) and not (starts.min() >= 0 and starts.max() <= len(self) - length):
            asked = f"asked for {length} from {starts.min()}, {starts.max()}"
            raise IndexError(f"{self.name} has {len(self)} tokens; {asked}")
        shards = np.searchsorted(self._ends, starts, side="right")  # (n,)
        offsets = starts - np.concatenate([[0], self._ends])[shards]  # in that shard
        for row, shard, offset in zip(out, shards.tolist(), offsets.tolist(), strict=True):
            filled = 0
            while filled < length:
                part = self._shards[shard][offset : offset + length - filled]
                row[filled : filled + len(part)] = part
                filled, shard, offset = filled + len(part), shard + 1, 0
        if out.size and (highest := out.max()) >= self.vocab_size:  # on a GPU this would be an unreadable device assert
            window, column = divmod(int(out.argmax()), length)
            shard = int(np.searchsorted(self._ends, starts[window] + column, side="right"))
            beyond = f"id {highest}, but the vocabulary has {self.vocab_size}"
            raise DataError(f"{self._files[shard]} holds {beyond}: {AGAIN}")
        return out


class Dataset:
    """A prepared folder. `train` and `val` are Tokens, `manifest` is its manifest.json (see data/manifest.py)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest: dict[str, Any] = manifests.read_manifest(folder)
        try:
            self.name: str = self.manifest["name"]
            self.tokenizer = from_manifest(self.manifest, folder / "manifest.json")
        except (KeyError, TypeError) as e:
            raise DataError(f"{folder / 'manifest.json'} lacks or garbles the entry {e}: {AGAIN}") from None
        self.vocab_size: int = self.tokenizer.vocab_size

    def split(self, name: str) -> Tokens:
        """The tokens of one split. Raises DataError where the set has no such split, or an empty one."""
        shards = self.manifest["splits"].get(name, {}).get("shards")
        if not shards:
            has = ", ".join(self.manifest["splits"])
            raise DataError(f"{self.folder} has no split {name!r}; it has: {has}")
        return Tokens([self.folder / shard["file"] for shard in shards], self.vocab_size, f"{self.name}/{name}")

    @cached_property  # every step uses it: opening all shards takes longer than reading a batch
    def train(self) -> Tokens:
        return self.split("train")

    @cached_property
    def val(self) -> Tokens:
        return self.split("val")


def open_dataset(name: str, prepare: bool = False, verify: bool = False) -> Dataset:
    """Open a prepared data set after a cheap check of its files (existence, size).

    Args:
        name: a folder of data/, or the path of a prepared folder (anything with a slash).
        prepare: make a small set that is missing; large ones are refused with the command to type.
        verify: read everything: checksums, and ids below the vocabulary's size.

    Raises:
        DataError: unknown or missing set, or files that disagree with their manifest.
    """
    path = expand(name)
    with reading(path):
        folder = path if "/" in name or (path / "manifest.json").is_file() else FOLDER / name
        if not (folder / "manifest.json").is_file():
            if not (folder / "prepare.py").is_file() or folder.parent.resolve() != FOLDER:
                known = ", ".join(sorted(recipe.parent.name for recipe in FOLDER.glob("*/prepare.py")))
                places = f"neither a prepared folder (with manifest.json) nor one of {known}"
                raise DataError(f"no data set {name!r}: {places}")
            recipe = importlib.import_module(f"data.{folder.name}.prepare")
            if not (prepare and recipe.SMALL):
                command = f"python data/{folder.name}/prepare.py"
                raise DataError(f"the data set {folder.name} is not prepared: run `{command}`")
            preparation.prepare(recipe.source(), folder)
        dataset = Dataset(folder)
        if verify:
            manifests.verify(folder, dataset.manifest)
        return dataset


def train_batch(
    tokens: Tokens, seed: int, step: int, rows: range, block_size: int
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Rows of the global batch of one step, as a pure function of (seed, step, row).

    Window i of a step starts at the i-th draw of a generator keyed by (seed, step). So the processes of a run take
    disjoint `rows` of one global batch whatever their number, and a resumed run needs nothing but its step.

    Args:
        tokens: the split to draw from.
        seed, step: 64-bit unsigned integers.
        rows: places in the global batch that this process works on, e.g. range(rank * n, (rank + 1) * n).
        block_size: tokens a row.

    Returns:
        x, y: torch.int64 (len(rows), block_size) each; y is x one token later.

    Raises:
        DataError: the split is shorter than block_size + 1.
    """
    import torch  # here, because preparing data needs neither its memory nor its second of start-up

    _require(tokens, block_size)
    # Philox's raw words, because numpy keeps them the same in every version (not so its `integers`). The remainder
    # prefers small starts by a part in 2**64 / len(tokens): 1e-9 for OpenWebText.
    words = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(max(rows.stop, 1))
    starts = (words % np.uint64(len(tokens) - block_size)).astype(np.int64)[rows.start : rows.stop : rows.step]
    window = torch.from_numpy(tokens.windows(starts, block_size + 1))  # (rows, block_size + 1)
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def val_starts(tokens: Tokens, block_size: int, max_windows: int | None = None) -> np.ndarray:
    """Starts of the fixed validation windows: non-overlapping, in order, the same in every run.

    Each window is block_size inputs and the token after them. The last len(tokens) % block_size tokens, at most, are
    left out. With `max_windows`, that many of them evenly spread over the split.

    Returns:
        int64 (windows,), for Tokens.windows(starts, block_size + 1).

    Raises:
        DataError: the split is shorter than block_size + 1.
    """
    _require(tokens, block_size)
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows is {max_windows}; allowed are 1 and above, or None for all")
    windows = (len(tokens) - 1) // block_size
    kept = windows if max_windows is None else min(windows, max_windows)
    return np.arange(kept, dtype=np.int64) * windows // kept * block_size


def _require(tokens: Tokens, block_size: int) -> None:
    if block_size >= len(tokens):
        raise DataError(
            f"block_size {block_size} needs {block_size + 1} tokens, but {tokens.name} has {len(tokens)}:"
            f" choose block_size below {len(tokens)} or a larger data set"
        )
