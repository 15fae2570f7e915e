"""pystdlib: the source of the running Python's standard library, character by character. Nothing to download.

    python data/pystdlib/prepare.py [--out=FOLDER]

About 4.5 million characters of real text on every machine. It differs a little from one Python version to the next,
so the manifest names the version: compare losses on equal versions only.
"""

import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import preparation
from data.manifest import DataError
from data.preparation import Record, Source
from data.tokenizer import CharTokenizer

SMALL = True
VOCABULARY = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))  # 96 characters: printable ASCII


def clean(source: str) -> str:
    """Text in VOCABULARY alone: tabs become spaces, and the rare character outside ASCII (in names, mostly) a '?'."""
    ascii_text = source.expandtabs(4).encode("ascii", "replace").decode("ascii")
    return "".join(c for c in ascii_text if c in VOCABULARY)  # drops form feeds and other control characters


def modules() -> list[Path]:
    """The single-file modules of the standard library, by name. Raises DataError where Python came without sources."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = sorted(path for name in sys.stdlib_module_names if (path := folder / f"{name}.py").is_file())
    if len(found) < 50:
        raise DataError(f"{folder} holds {len(found)} sources of the standard library: use a complete Python")
    return found


def is_val(module: str) -> bool:
    """Whole files, a tenth of them, chosen by their name: a version that adds a module moves no other."""
    return hashlib.sha256(module.encode()).digest()[0] < 26


def source() -> Source:
    def records(start: int) -> Iterator[Record]:
        for path in modules()[start:]:
            yield Record("val" if is_val(path.stem) else "train", clean(path.read_text(encoding="utf-8")))

    origin = {"text": "single-file modules of the standard library", "python": platform.python_version()}
    return Source("pystdlib", CharTokenizer(VOCABULARY), records, origin)


if __name__ == "__main__":
    preparation.main(__doc__, __file__, source)
