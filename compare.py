"""Compare runs: which ends lower, by how much and how surely, how fast, and what the coefficients did.

    python compare.py out/adam-1 out/adam-2 out/mada-1 out/mada-2
    python compare.py out/sweep --baseline="adam, learning_rate 0.001" --out=out/comparison
    python compare.py experiments/records/laptop/{adam,mada,lion}-?.json

Takes out_dirs, folders of out_dirs, and records of experiments/. Runs that differ in the seed alone are a group; the
groups' differing settings are found and named. Runs still going, diverged, or on other data or of another length than
most are listed and left out. Prints a table and writes compare.json, compare.png and compare.html (which needs no
other file) to --out.

A difference from the baseline is paired over seeds (same seed: same initial weights, same batches): its mean, a 95%
confidence interval and p of a two-sided t-test, from three seeds on; p (Holm) is corrected for the number of
differences in the table. The baseline is the best group of adam, or of AdamW, or the first; --baseline names another.
"""

import sys
from pathlib import Path
from cli import Parser, program

from data.manifest import expand
from study.comparison import write


@program("compare.py")
def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser("compare.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="OUT_DIR")
    parser.add_argument("--baseline", default=None, help="label of the group to subtract, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("out/compare"), help="folder of what is written")
    arguments = parser.parse_args(argv)
    print(write([*map(expand, arguments.runs)], expand(arguments.out), arguments.baseline))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
