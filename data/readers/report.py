"""What an import read, kept and dropped, and why: on screen and in ``dataset.json``."""

from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass(slots=True)
class TableReport:
    """The rows of one table. ``dropped`` maps a reason to rows; ``added`` are rows that no file had."""

    read: int = 0
    kept: int = 0
    added: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    #: The reason of the rows that are neither kept nor dropped for another reason.
    remainder: str = "exact duplicate rows"

    def finish(self, written: int) -> None:
        """Settle the remainder once the table is on disk with ``written`` rows."""
        self.kept = written - self.added
        rest = self.read - self.kept - sum(self.dropped.values())
        if rest:
            self.dropped[self.remainder] = self.dropped.get(self.remainder, 0) + rest


@dataclass(slots=True)
class ImportReport:
    """One :class:`TableReport` per table of the dataset, ``events`` first."""

    tables: dict[str, TableReport] = field(default_factory=lambda: {"events": TableReport()})

    def table(self, name: str) -> TableReport:
        """The report of table ``name``, new where there was none."""
        return self.tables.setdefault(name, TableReport())

    def to_json(self) -> dict[str, Any]:
        """``{table: {read, kept, added, dropped: {reason: rows}}}``."""
        return {
            name: {"read": rows.read, "kept": rows.kept, "added": rows.added, "dropped": dict(rows.dropped)}
            for name, rows in self.tables.items()
        }

    def render(self, title: str) -> Table:
        """The table to print."""
        shown = Table(title=title, title_justify="left")
        for heading in ("table", "rows read", "kept", "dropped", "why"):
            shown.add_column(heading, justify="left" if heading in ("table", "why") else "right")
        for name, rows in self.tables.items():
            reasons = [f"{count:,} {reason}" for reason, count in rows.dropped.items() if count]
            if rows.added:
                reasons.append(f"{rows.added:,} added: named by events only")
            dropped = sum(rows.dropped.values())
            shown.add_row(name, f"{rows.read:,}", f"{rows.kept:,}", f"{dropped:,}", "; ".join(reasons))
        return shown
