"""Rows of decisions with everything on record, made up but consistent, for the table and the page."""

from __future__ import annotations

from typing import get_args

from interp.system.choices import Inserted

ROOMS = ("drawer 1", "drawer 2", "shelf 1", "desk 1", "cabinet 3")
INSERTED = get_args(Inserted)
PLACES = ("boundary", "action_tag", "task", "history", "observation", "prompt")


#: Decisions that all instruments read; of the others is kept what was decoded.
READ = 60


def decision_rows(n: int = 6, checkpoints: tuple[int, ...] = (0, 110), layers: int = 4) -> list[dict]:
    """Three rows, one a mode, for each of `n` decisions at each checkpoint.

    Every second decision's actions differ at the last checkpoint, every third was flipped by a conflicting
    trace, every fifth has a prompt action that did not parse.
    """
    rows = []
    for number in range(n):
        reference = f"go to {ROOMS[number % 5]}"
        texts = [
            ("template", "<|user|>\n"),
            ("observation", f"You are in room {number}. You see a {', a '.join(ROOMS)}. "),
            ("task", f"Your task is to: put mug {number} in drawer."),
            ("template", "<|assistant|>"),
            ("boundary", "\n"),
        ]
        spans, end = [], 0
        for span, text in texts:
            spans.append(dict(span=span, start=end, end=end + len(text)))
            end += len(text)
        about = dict(
            decision=f"test/{number // 3}#{number % 3}",
            episode=f"test/{number // 3}",
            step=number % 3,
            split="in_domain" if number < (n + 1) // 2 else "out_of_domain",
            task=f"Your task is to: put mug {number} in drawer.",
            task_type="pick_and_place",
            reference=reference,
            n_admissible=5,
            prompt="".join(text for _, text in texts),
            spans=spans,
        )
        for checkpoint in checkpoints:
            rows += _modes(about, number, checkpoint, checkpoint == checkpoints[-1], layers)
    return rows


def _modes(about: dict, number: int, checkpoint: int, last: bool, layers: int) -> list[dict]:
    actions = [f"go to {room}" for room in ROOMS]
    elsewhere = actions[(number + 1) % 5]
    cot = about["reference"] if last else elsewhere
    prompt = (elsewhere if number % 2 else cot) if number % 5 else None
    flipped = last and number % 3 == 0 if number < READ else None
    flags = dict(actions_differ=prompt != cot, flipped=flipped)
    if flipped is not None:
        equal, unlike = ("overridable", "trace_decided") if flipped else ("post_hoc", "neither")
        flags["diagnosis"] = equal if prompt == cot else unlike if prompt else "neither"
    rows = []
    for mode, action in dict(prompt=prompt, cot=cot, empty_think=cot).items():
        ordered = sorted(actions, key=lambda each: (each != (action or elsewhere), each))
        row = about | dict(checkpoint=checkpoint, mode=mode, action=action, parsed=action is not None)
        row |= dict(is_correct=action == about["reference"], **flags, completion=f"{action}</action>")
        if mode != "empty_think":
            row |= dict(
                choice=ordered[0],
                choice_per_token=ordered[0],
                candidates=ordered,
                candidates_logp=[-0.5 - k for k in range(5)],
                reference_rank=1 + ordered.index(about["reference"]),
                action_rank=1 if action else None,
            )
        rows.append(row)
    rows[1]["trace"] = f"I look for mug {number}. Next I check {ROOMS[number % 5]}."
    if number < READ:
        _read(rows, number, (cot, elsewhere), flipped, layers)
    return rows


def _read(rows: list[dict], number: int, actions: tuple[str, str], flipped: bool, layers: int) -> None:
    """Put in what the instruments say."""
    cot, elsewhere = actions
    for row in rows[:2]:
        row["patching"] = _patched(number, layers)
        row["attribution"] = [
            dict(
                site="resid_pre", direction=direction, position=5 + k, token=token, effect=[0.25 - k] * layers
            )
            for direction in ("denoise", "noise")
            for k, token in enumerate((" mug → pen", "\n"))
        ]
    rows[1] |= dict(
        area_action=number % 4 / 4,
        area_distribution=0.5,
        area_filler=1.0,
        same_0=number % 2 == 0,
        same_25=number % 2 == 0,
        same_50=True,
        same_75=True,
        twin=elsewhere,
        direct=1.25,
        via_cot=2.5,
        total=3.5,
        via_text=2.0,
        via_state=0.5,
        conflicts=[_conflict(kind, cot, elsewhere, flipped) for kind in INSERTED],
        probes=[
            dict(label=label, truth="drawer", predicted=["shelf", *["drawer"] * (layers - 1)])
            for label in ("eventual_target", "reference_target")
        ],
        lens=[
            dict(
                whose=whose, token=" drawer", rank=[900, 30, 4, 1][:layers], probability=[0.0, 0.1, 0.2, 0.5]
            )
            for whose in ("eventual", "reference")
        ],
    )


def _conflict(kind: str, own: str, argued: str, flipped: bool) -> dict:
    argues = kind in ("other_state", "resampled")
    action = argued if argues and flipped else own
    return dict(
        inserted_trace=kind,
        inserted="<think>Another trace.</think><action>",
        argued=argued if argues else None,
        action=action,
        keep=action == own,
        follow=argues and action == argued,
        leaked=False,
        logp_trace=-1.5,
    )


def _patched(number: int, layers: int) -> list[dict]:
    return [
        dict(
            at=place,
            site="resid_pre",
            direction=direction,
            metric=metric,
            effect=[((number + layer) % 11 - 1) / 10 for layer in range(layers)],
        )
        for place in PLACES
        for direction in ("denoise", "noise")
        for metric in ("difference", "kl")
    ]
