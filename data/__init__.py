"""Data sets: one folder each, made by its prepare.py into token shards with a manifest.

from data import open_dataset, train_batch, val_starts
ds = open_dataset("shakespeare_char", prepare=True)
x, y = train_batch(ds.train, seed=1, step=0, rows=range(12), block_size=64)
"""

import cli  # noqa: F401 (before numpy, because of Ctrl-C)

from data.corpora import texts
from data.dataset import Dataset, Tokens, open_dataset, train_batch, val_starts
from data.manifest import DataError

__all__ = ["DataError", "Dataset", "Tokens", "open_dataset", "texts", "train_batch", "val_starts"]
