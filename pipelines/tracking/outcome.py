"""The outcome of an attempt to send, as the helper process hands it to its stage, and the line that a user reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipelines.command.errors import HeldError, UserError
from pipelines.tracking.addresses import clean, place
from pipelines.tracking.cursors import RunRecord
from pipelines.tracking.probe import AwayError, LoginError, RefusedError


@dataclass(kw_only=True)
class SyncResult:
    """The outcome so far; of plain values, for JSON."""

    uri: str  # without credentials
    sent: int = 0  # runs
    waiting: dict[str, int] = field(default_factory=dict)  # runs that are not sent, by kind
    away: str | None = None  # predicate: can't be reached, gives no answer, wants a login, refuses all
    slow: bool = False  # given up though it still answered
    refused: list[str] = field(default_factory=list)  # runs that were refused, and why
    failed: str | None = None  # why nothing could be sent, where the server is not the reason
    problems: list[str] = field(default_factory=list)  # files that can't be tracked
    busy: bool = False  # another process is sending to the same server
    came_from: str | None = None  # where a copied database kept its artifacts until now

    @property
    def waits(self) -> int:
        """The number of waiting runs."""
        return sum(self.waiting.values())

    @property
    def line(self) -> str | None:
        """The line for the user; None when all is well."""
        where = place(self.uri)
        kinds = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in self.waiting.items() if n]
        left = f"{' and '.join(kinds) or 'nothing'} wait{'s' if self.waits == 1 else ''} in the spool"
        if self.failed is not None:
            return f"not tracked: {self.failed}" + (f"; {left}" if self.waits else "")
        if self.slow and self.waits:
            total = self.sent + self.waits
            return f"{where} is slow: {self.sent} of {total} runs sent, the next stage sends the rest"
        if self.away is not None:
            return f"{where} {self.away}" + (f": {left}; they are sent by the next stage" if self.waits else "")
        if self.refused:
            return f"{where} lacks {self.refused[0]}; {left}"
        if self.came_from is not None:
            return f"{where} was copied or moved: its artifacts were in {self.came_from}, and are beside it from now on"
        more = f" (and {len(self.problems) - 1} more like it)" if len(self.problems) > 1 else ""
        return f"not tracked: {self.problems[0]}{more}" if self.problems else None

    def count(self, waiting: Iterable[RunRecord]) -> None:
        """Note how many records wait."""
        kinds = [record.tags["kind"] for record in waiting]
        self.waiting = {kind: kinds.count(kind) for kind in ("trial", "benchmark")}

    @contextmanager
    def keeping_errors(self, uri: str) -> Iterator[None]:
        """Keep an error of the block here: tracking is best effort, and ends no stage."""
        try:
            yield
        except HeldError:
            self.busy = True
        except (AwayError, LoginError) as error:
            self.away = str(error)
        except RefusedError as error:  # of every request
            self.away = f"refuses our requests ({error})"
        except UserError as error:
            self.failed = str(error)
        except Exception as error:
            self.failed = clean(f"{type(error).__name__}: {error}", uri)
