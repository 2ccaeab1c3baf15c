"""What a user may have got wrong: one clear line, a non-zero exit, no traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

USER_ERROR = 2  # exit status of every error that a user can mend


class UserError(Exception):
    """A problem with the input or the surroundings; its text is the whole line a user reads."""


def guard(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a ``UserError``, a full disk or Ctrl-C becomes one line and an exit status."""
    try:
        main()
    except UserError as error:
        fail(str(error), USER_ERROR)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(f"no space left on the disk that holds {error.filename or 'the working directory'}", USER_ERROR)
    except KeyboardInterrupt:
        fail("interrupted; the same command continues where this one stopped", 130)


def fail(line: str, status: int) -> None:
    """Print ``error: line`` and exit with ``status``."""
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    raise SystemExit(status)
