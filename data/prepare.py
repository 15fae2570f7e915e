"""Your own text as a data set, in GPT-2's byte-pair encoding or character by character.

    python data/prepare.py --input FILE_OR_FOLDER... --out=data/NAME [--tokenizer=char] [--val_fraction=0.01] ...

A plain text (.txt, .md, source code: any file whose content is UTF-8 or UTF-16 text) is one document; of .jsonl,
.jsonl.gz and .jsonl.zst a line is one, of .parquet a row. Files may have any size; files of a folder that are not text
are left out with a line that names them. Documents are drawn for validation at random, each by (seed, its number); a
single text is cut instead, and its end is for validation. Then: python train.py config/....py --dataset=NAME

--tokenizer=char makes every character that occurs an id: a tiny model does not pay for 50,257 logits. Documents then
end with a newline, in place of GPT-2's end-of-text. --overwrite makes a set again, say with another --val_fraction.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli  # noqa: F401 (before numpy, because of Ctrl-C)

import numpy as np

from data.documents import RECORDS, Documents, border_after, find_files
from data.manifest import DataError, expand
from data.preparation import ArgumentParser, Record, Source
from data.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer


@lru_cache(maxsize=2)
def _draws(seed: int, block: int) -> np.ndarray:
    """Uniform in [0, 1), float64 (4096,), for documents 4096 * block onwards."""
    return np.random.Philox(key=np.array([seed, block], dtype=np.uint64)).random_raw(4096) / 2.0**64


def is_val(document: int, seed: int, fraction: float) -> bool:
    """Whether a document is for validation: a function of its number, so that the stream can go on anywhere."""
    return bool(_draws(seed, document // 4096)[document % 4096] < fraction)


def source(
    inputs: Sequence[str | Path], name: str, key: str = "text", val_fraction: float = 0.01, seed: int = 1,
    skip_bad: bool = False, tokenizer: str = "gpt2",
) -> Source:  # fmt: skip
    """What to prepare.

    Args:
        inputs: files and folders.
        name: of the data set.
        key: field or column that holds the text.
        val_fraction: of the documents, or of the characters of a single text, in (0, 1).
        seed: of the split.
        skip_bad: leave out broken lines and rows without text.
        tokenizer: "gpt2", or "char" for the characters that occur, which takes a first reading of everything.

    Raises:
        DataError: no such input, or one of another kind; an impossible fraction or seed.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"--val_fraction={val_fraction}; allowed is what lies between 0 and 1, both excluded")
    if not 0 <= seed < 1 << 64:
        raise DataError(f"--seed={seed}; allowed are 0 to 2**64 - 1")
    files = find_files(inputs)
    documents = Documents(files, key, skip_bad)
    single = len(files) == 1 and not files[0].name.endswith(RECORDS)
    chosen: Tokenizer = GPT2Tokenizer()
    separator = ""
    if tokenizer == "char":
        separator = "" if single else "\n"
        chosen = CharTokenizer("".join(sorted(set(separator).union(*(piece.text for piece in documents.pieces())))))

    def halves() -> Iterator[Record]:
        """The pieces of a single text, the one in which validation begins cut in two."""
        cut = border_after(files[0], 1 - val_fraction)
        for _, text, ends, position in documents.pieces():
            before = max(cut - position, 0)
            if before:
                yield Record("train", text[:before], ends and before >= len(text))
            if before < len(text):
                yield Record("val", text[before:], ends)

    def records(start: int) -> Iterator[Record]:
        if single:
            yield from itertools.islice(halves(), start, None)
            return
        for piece in documents.pieces(start):
            end = separator if piece.ends and not piece.text.endswith("\n") else ""
            yield Record("val" if is_val(piece.document, seed, val_fraction) else "train", piece.text + end, piece.ends)

    sizes = {str(file.resolve()): file.stat().st_size for file in files}
    return Source(
        name,
        chosen,
        records,
        {"bytes": sizes, "key": key, "val_fraction": val_fraction, "split_seed": seed, "skip_bad": skip_bad},
        required=("train", "val"),
        fraction=documents.fraction,
        skipped=lambda: documents.skipped,
        disk_bytes=sum(sizes.values()) * (4 if tokenizer == "char" else 1) // 2,  # a GPT-2 token of English: 4.4 bytes
    )


def main() -> None:
    parser = ArgumentParser(__doc__, None)
    parser.add_argument("--input", nargs="+", required=True, help="files and folders")
    parser.add_argument("--key", default="text", help="field or column that holds the text (default: %(default)s)")
    parser.add_argument("--tokenizer", default="gpt2", choices=("gpt2", "char"), help="(default: %(default)s)")
    parser.add_argument("--val_fraction", type=float, default=0.01, help="for validation (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the split (default: %(default)s)")
    parser.add_argument("--skip_bad", action="store_true", help="leave out broken lines, and count them")
    parser.run(
        lambda a: source(
            a.input, Path(os.path.abspath(expand(a.out))).name, a.key, a.val_fraction, a.seed, a.skip_bad, a.tokenizer
        )
    )


if __name__ == "__main__":
    main()
