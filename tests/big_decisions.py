"""Very many made-up decisions: written as partitions, as a table with its page, and queried."""

from itertools import groupby
from pathlib import Path

import pyarrow.compute as pc

STEPS = range(0, 400, 10)
MODES = ("prompt", "cot")
ROOMS = ("drawer 1", "drawer 2", "shelf 1", "desk 1", "cabinet 3")


def decision(number):
    """What holds at every checkpoint, with a prompt of 2,000 characters that no other has."""
    words = (f"You are in room {number * 31 + k}. You see a {ROOMS[(number + k) % 5]}." for k in range(50))
    prompt = " ".join(words)
    return dict(
        decision=f"game {number // 10}#{number % 10}",
        episode=f"game {number // 10}",
        step=number % 10,
        split="in_domain",
        task=f"Your task is to: put mug {number} in drawer.",
        task_type="pick_and_place",
        reference=f"go to {ROOMS[number % 5]}",
        n_admissible=5,
        prompt=prompt,
        spans=[dict(span="observation", start=0, end=len(prompt))],
    )


def row(about, number, step, mode):
    action = f"go to {ROOMS[(number + step // 10) % 5]}"
    trace = f"At step {step} in game {number} I go on. " * 10
    columns = dict(
        action=action, parsed=True, is_correct=action == about["reference"], completion=trace + action
    )
    return about | columns | dict(checkpoint=step, mode=mode, actions_differ=False, trace=trace)


def partitions(rows):
    n = rows // (len(STEPS) * len(MODES))
    for step in STEPS:
        abouts = ((decision(i), i) for i in range(n))
        yield "in_domain", step, (row(about, i, step, mode) for about, i in abouts for mode in MODES)


def by_decision(rows):
    n = rows // (len(STEPS) * len(MODES))
    for number in range(n):
        about = decision(number)
        yield from (row(about, number, step, mode) for step in STEPS for mode in MODES)


def write(folder, rows):
    from interp.results.decisions import write_records

    return write_records(folder, partitions(rows), {})[1]


def query(folder, rows):
    """The right actions of a mode at every checkpoint, counted over all rows, read in batches."""
    from interp.results.decisions import records

    wanted = records(folder).scanner(columns=["checkpoint", "is_correct"], filter=pc.field("mode") == "cot")
    return 2 * sum(len(batch) for batch in wanted.to_batches())


def table_and_page(folder, rows):
    from interp.report.viewer import Page
    from interp.results.decisions import write_decisions

    with Page(Path(folder)) as page:

        def told():
            for _, each in groupby(by_decision(rows), key=lambda row: row["decision"]):
                group = list(each)
                page.add(group)
                yield from group

        write_decisions(Path(folder) / "tables", told(), {})
        page.save({})
    return page.rows
