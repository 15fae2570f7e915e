"""The figure of a run: loss, coefficients and hypergradients against steps.

    python plot.py out/quickstart [another/run ...]

Reads metrics.csv and writes figure.png beside it, also while the run goes on.
"""

from __future__ import annotations

import sys
from cli import Mistake, program

from runtime.figure import draw


@program("plot.py")
def main(argv: list[str]) -> int:
    """Draw every run named; exit code 2 if one of them cannot be drawn."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    mistakes = []
    for out_dir in argv:
        try:
            print(draw(out_dir))
        except Mistake as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        raise Mistake("\n".join(mistakes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
