"""``make fuzz``: random cases of every area in turn, for ten minutes; the seed of each that fails is printed."""

from __future__ import annotations

import argparse
import random
import time

from tests.fuzz import harness


def main() -> None:
    """Run until the time is over; exit with 1 where a case failed."""
    found = harness.areas()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--area", choices=sorted(found), help="this one alone")
    parser.add_argument("--seed", type=int, help="where to begin; by default somewhere else each time")
    parser.add_argument("--cases", type=int, help="as many of each area, whatever time it takes")
    args = parser.parse_args()
    chosen = {args.area: found[args.area]} if args.area else found
    first = random.SystemRandom().randrange(2**40) if args.seed is None else args.seed
    print(f"seed {first}", flush=True)
    began, number, failed = time.monotonic(), 0, 0
    while number < args.cases if args.cases else time.monotonic() - began < args.seconds:
        for name, case in chosen.items():
            wrong = harness.run(case, first + number)
            if wrong:
                failed += 1
                print(f"FAILED: --area {name} --seed {first + number} --cases 1\n{wrong}", flush=True)
        number += 1
    print(f"{number * len(chosen):,} cases in {time.monotonic() - began:.0f} s, {failed} failed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
