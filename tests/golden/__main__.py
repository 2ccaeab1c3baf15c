"""Write the golden files of this platform anew: ``python -m tests.golden [NAME ...]``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.golden import trainings


def main() -> None:
    """Train the rows named, or all, and keep what they came to."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(trainings.ROWS)}")
    names = parser.parse_args().names or list(trainings.ROWS)
    folder = trainings.FOLDER / trainings.platform()
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        for name in names:
            text = trainings.train(name, Path(home))
            path = folder / f"{name}.txt"
            before = path.read_text(encoding="utf-8") if path.exists() else None
            path.write_text(text, encoding="utf-8")
            print(f"{name}: {'new' if before is None else 'as before' if before == text else 'CHANGED'}", flush=True)


if __name__ == "__main__":
    main()
