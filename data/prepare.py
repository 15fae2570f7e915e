"""Your own text as a data set, in GPT-2's byte-pair encoding.

    python data/prepare.py --input FILE_OR_FOLDER... --out=data/NAME [--val_fraction=0.01] [--seed=1] ...

Reads .txt (a file is a document), .jsonl, .jsonl.gz, .jsonl.zst (a line is one) and .parquet (a row is one), of any
size. Documents are drawn for validation at random, each by (seed, its number); a single .txt file is cut instead, and
its end is for validation. Then: python train.py config/....py --dataset=NAME
"""

import argparse
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import preparation
from data.documents import PIECE_CHARS, Documents, Piece, find_files
from data.manifest import DataError
from data.preparation import SHARD_TOKENS, Record, Source
from data.tokenizer import GPT2Tokenizer


@lru_cache(maxsize=2)
def _draws(seed: int, block: int) -> np.ndarray:
    """Uniform in [0, 1), float64 (4096,), for documents 4096 * block onwards."""
    return np.random.Philox(key=np.array([seed, block], dtype=np.uint64)).random_raw(4096) / 2.0**64


def is_val(document: int, seed: int, fraction: float) -> bool:
    """Whether a document is for validation: a function of its number, so that the stream can go on anywhere."""
    return bool(_draws(seed, document // 4096)[document % 4096] < fraction)


def source(
    inputs: list[Path], name: str, key: str = "text", val_fraction: float = 0.01, seed: int = 1, skip_bad: bool = False
) -> Source:
    """What to prepare.

    Args:
        inputs: files and folders.
        name: of the data set.
        key: field or column that holds the text.
        val_fraction: of the documents, in (0, 1).
        seed: of the split.
        skip_bad: leave out broken lines and rows without text.

    Raises:
        DataError: no such input, or one of another kind; an impossible fraction.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"--val_fraction={val_fraction}; allowed is what lies between 0 and 1, both excluded")
    if seed < 0:
        raise DataError(f"--seed={seed}; allowed are 0 and above")
    files = find_files(inputs)
    single = len(files) == 1 and files[0].path.suffix == ".txt"
    sizes = {str(file.path.resolve()): file.path.stat().st_size for file in files}
    # the cut of a single text falls on a border of pieces: pieces of a thousandth keep it close to the fraction
    piece_chars = min(PIECE_CHARS, max(sum(sizes.values()) // 1000, 1)) if single else PIECE_CHARS
    documents = Documents(files, key, skip_bad, piece_chars)

    def split_of(piece: Piece) -> str:
        if single:
            return "val" if piece.position >= 1 - val_fraction else "train"
        return "val" if is_val(piece.document, seed, val_fraction) else "train"

    def records(start: int) -> Iterator[Record]:
        for piece in documents.pieces(start):
            yield Record(split_of(piece), piece.text, piece.ends)

    return Source(
        name,
        GPT2Tokenizer(),
        records,
        {"bytes": sizes, "key": key, "val_fraction": val_fraction, "split_seed": seed, "skip_bad": skip_bad},
        required=("train", "val"),
        fraction=documents.fraction,
        skipped=lambda: documents.skipped,
        disk_bytes=sum(sizes.values()) // 2,  # English: 4.4 bytes a token. Compressed input needs more.
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="files and folders")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the shards; data/NAME makes it --dataset=NAME"
    )
    parser.add_argument("--key", default="text", help="field or column that holds the text (default: %(default)s)")
    parser.add_argument("--val_fraction", type=float, default=0.01, help="of the documents (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the split (default: %(default)s)")
    parser.add_argument("--skip_bad", action="store_true", help="leave out broken lines, and count them")
    parser.add_argument("--shard_tokens", type=int, default=SHARD_TOKENS, help="tokens a shard (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="that tokenize (default: one for each core)")
    a = parser.parse_args()

    def prepare() -> None:
        its = source(a.input, a.out.resolve().name, a.key, a.val_fraction, a.seed, a.skip_bad)
        preparation.prepare(its, a.out, shard_tokens=a.shard_tokens, threads=a.threads)

    preparation.run(prepare)


if __name__ == "__main__":
    main()
