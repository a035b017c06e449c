"""One analysis, from its settings to its table and figures; nothing is done where they are there already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import check_values
from .registry import find
from .unchanged import keep, unchanged

if TYPE_CHECKING:
    from .study import Study


def run_analysis(name: str, config: Any, draw: bool = True, first: Callable[[], int] | None = None) -> int:
    """Run an analysis; returns the exit status.

    Args:
        config: an instance of the instrument's `config`.
        draw: draw the figures of the table that it writes, and say where both are.
        first: what is done before it, once the settings are known to be right; not 0: it has failed.
    """
    writes = hasattr(config, "written")  # a table of a study
    if writes and (kept := unchanged(config, name)):
        for sentence in kept.said:
            print(sentence, file=sys.stderr)
        print(f"{name}: made already of the same checkpoints, decisions, settings and code")
        _show(kept.tables, kept.figures or (_drawn(config, kept.tables) if draw else []))
        return 0
    check_values(config)
    if writes:
        from .storing import check_room, give_back, to_store

        check_room(config, to_store(config, name))
    if first and (status := first()):
        return status
    status = find(name).run(config)
    if writes and not status:
        give_back(config)
        figures = _drawn(config, config.written) if draw else []
        keep(config, name, figures)
        _show(config.written, figures)
    return status if isinstance(status, int) else 0


def _drawn(config: Study, tables: Sequence[Path]) -> list[Path]:
    """The figures of tables, drawn now."""
    from .figures import draw_own

    return [path for table in tables for path in draw_own(table, config.run)]


def _show(tables: Sequence[Path], figures: Sequence[Path]) -> None:
    """Say where tables and figures are."""
    for what, paths in (("table", tables), ("figure", figures)):
        if paths:
            print(f"{what}: {', '.join(map(str, paths))}")
