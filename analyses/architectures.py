"""Which architectures are exact, and on which path: the page docs/architectures.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .registry import Instrument


@dataclass
class Config:
    """Every causal family of the installed transformers, as a tiny random model."""

    page: Annotated[Path | None, tyro.conf.Positional] = None
    """File that the page is written to, beside being printed."""


def run(config: Config) -> None:
    """Try every family, and print the page."""
    from interp.models.architectures import document

    page = document()
    if config.page:
        config.page.write_text(page)
    print(page, end="")


INSTRUMENT = Instrument("architectures", Config, run)
