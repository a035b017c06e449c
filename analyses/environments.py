"""The same measurements in several environments, side by side, and the splits that each is studied on.

Writes tables, figures and a page.

python -m analyses environments --runs runs/scienceworld runs/twc
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd

from interp.environments.base import find
from interp.results.headline import headline
from interp.results.queries import pick
from interp.results.tables import ESTIMATE_COLUMNS, read_table, write_table
from interp.system.limits import Existing, Folder
from interp.system.paths import ROOT

from . import figures
from .provenance import made_by
from .registry import Instrument

#: Tables that are compared.
COMPARED = ("behaviour", "online", "reliance", "conflict", "probes")
FIGURES = ROOT / "figures"
#: Of each environment: what its series was trained on, and what its decisions of each split are.
SPLITS: Mapping[str, Mapping[str, str]] = {
    "alfworld": dict(
        trained="four task types, 100 floor plans",
        in_domain="the same four task types in 20 unseen floor plans",
        out_of_domain="Cool & Place and Pick Two, which no training episode solves, in unseen floor plans",
    ),
    "scienceworld": dict(
        trained="train variations of every task type but the last of each topic, in which the base saw "
        "aimless play",
        in_domain="development variations of the same task types",
        out_of_domain="the last task type of each topic (without 3-4; solutions of more than 60 steps, "
        "so all of 5-2 and most of 9-3, are not recorded)",
    ),
    "twc": dict(
        trained="games of the train fold",
        in_domain="other games of the train fold, with the same objects",
        out_of_domain="games of the dev and test folds, whose objects no training game holds",
    ),
    "bfcl_single": dict(
        trained="nothing of it: SmolLM2's series learned household commands",
        in_domain="tested questions of the curated categories, by our own split",
        out_of_domain="tested questions that users asked (`live_*`)",
    ),
}


@dataclass
class Config:
    """Studies to put side by side, each made by `python -m analyses all --environment NAME`."""

    runs: Annotated[tuple[Path, ...], Existing()] = ()
    """Folders of new studies, whose tables that are compared are copied; those copied before stay."""
    out: Annotated[Path, Folder()] = FIGURES / "environments"
    """Folder of the copies, the merged tables and the figures."""
    alfworld: Annotated[Path, Existing()] = FIGURES / "tables"
    """Tables of the shipped series' study."""


def splits(name: str, tables: Path) -> list[dict]:
    """What an environment's splits hold, and how many of their decisions are recorded and studied."""
    from interp.plots.environments import ENVIRONMENTS

    environment, studied = find(name), pick(read_table(tables, "behaviour")[0], metric="acc_cot")
    recorded = environment.recorded()
    rows = []
    for split, theirs in environment.splits.items():
        decisions = [d for e in recorded.get(theirs, ()) for d in e.decisions()]
        rows.append(
            dict(
                environment=ENVIRONMENTS[name],
                trained_on=SPLITS[name]["trained"],
                split=split.replace("_", " "),
                holds=SPLITS[name][split],
                task_types=len({d.task_type for d in decisions}),
                episodes=len({d.episode for d in decisions}),
                decisions=len(decisions),
                studied=int(pick(studied, split=split)["n"].max())
                if (studied["split"] == split).any()
                else 0,
            )
        )
    return rows


def run(config: Config) -> None:
    """Copy, merge, tabulate and draw."""
    started = time.time()
    for folder in config.runs:
        _, made = read_table(Path(folder) / "tables", "behaviour")
        name = made["environment"]["name"]
        if name not in SPLITS:
            raise ValueError(
                f"{folder} is a study of the environment {name!r}: side by side stand {', '.join(SPLITS)}."
            )
        for path in sorted((Path(folder) / "tables").iterdir()):
            if path.stem in COMPARED:
                (config.out / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, config.out / name / path.name)
    where = {name: config.alfworld if name == "alfworld" else config.out / name for name in SPLITS}
    where = {name: tables for name, tables in where.items() if (tables / "behaviour.csv").exists()}
    read = {
        name: {
            path.stem: read_table(tables, path.stem)[0]
            for path in tables.glob("*.csv")
            if path.stem in COMPARED  # the shipped series' folder has others
        }
        for name, tables in where.items()
    }
    merged = pd.concat([headline(tables).assign(environment=name) for name, tables in read.items()])
    sources = {name: read_table(tables, "behaviour")[1] for name, tables in where.items()}
    made = made_by("environments", config, started) | dict(
        studies={
            name: {key: of.get(key) for key in ("command", "written", "seconds", "weights")}
            for name, of in sources.items()
        }
    )
    write_table(
        config.out / "tables",
        "environments",
        merged[["environment", "step", "split", "metric", *ESTIMATE_COLUMNS]],
        made,
    )
    write_table(
        config.out / "tables",
        "splits",
        pd.DataFrame([row for name, tables in where.items() for row in splits(name, tables)]),
        made,
    )
    figures.run(figures.Config(config.out / "tables", config.out))


INSTRUMENT = Instrument("environments", Config, run)
