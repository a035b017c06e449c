"""Which games are played together, and what is kept of them."""

from types import SimpleNamespace

import pytest

from analyses import online
from interp.rollouts import play as rollout
from interp.rollouts.play import Result


class Study(SimpleNamespace):
    """What playing asks of a study; stages are kept in a dict."""

    def __init__(self, games=("{split} {i}",), unit=None):
        [name] = games
        super().__init__(
            unit=unit, parts=("in_domain", "out_of_domain"), step_limit=3, limits=dict(prompt=1, cot=2)
        )
        self.official, self.generator, self.seed, self.stored = False, "hf", 0, {}
        self.format, self.env = SimpleNamespace(hash="f"), SimpleNamespace(source="")
        self.pick_games = lambda split, n, seed: [name.format(split=split, i=i) for i in range(n)]

    def inputs(self, step):
        return dict(step=step)

    def model(self, step):
        return step

    def kept(self, name, inputs, compute):
        return name in self.stored

    def stage(self, name, inputs, compute):
        if name not in self.stored:
            self.stored[name] = compute()
        return self.stored[name]


@pytest.fixture
def plays(monkeypatch):
    """The (game, mode) of each call of `play`."""
    calls = []

    def play(model, fmt, environment, games, modes, pool, **options):
        calls.append(list(zip(games, modes, strict=True)))
        return [Result(game, True, number, False) for number, game in enumerate(games)]

    monkeypatch.setattr(rollout, "play", play)
    return calls


def all_played(study, count=2):
    played = {}
    found = {
        (split, mode): online.played_games(study, 5, split, mode, None, count, played=played)
        for split in study.parts
        for mode in online.BOTH
    }
    assert not played
    return found


def test_all_games_of_a_checkpoint_are_played_in_one_call_and_kept_by_split_and_mode(plays):
    study = Study()
    found = all_played(study)
    ins, out = ["in_domain 0", "in_domain 1"], ["out_of_domain 0"]
    assert plays == [[(game, mode) for mode in ("cot", "prompt") for game in [*ins, *out]]]
    assert {key: [g["game"] for g in games] for key, games in found.items()} == {
        (split, mode): names
        for split, names in (("in_domain", ins), ("out_of_domain", out))
        for mode in online.BOTH
    }
    assert [g["steps"] for g in found["out_of_domain", "cot"]] == [2]
    assert all_played(study) == found and len(plays) == 1


def test_what_is_kept_is_not_played_again(plays):
    study = Study()
    all_played(study)
    del study.stored["online/5-in_domain-cot"], study.stored["online/5-out_of_domain-prompt"]
    all_played(study)
    assert plays[1] == [("in_domain 0", "cot"), ("in_domain 1", "cot"), ("out_of_domain 0", "prompt")]


def test_a_unit_and_splits_whose_games_share_names_are_played_by_themselves(plays):
    all_played(Study(unit=("a cell",)))
    all_played(Study(games=("{i}",)))
    assert [{game for game, _ in call} for call in plays] == [
        {"in_domain 0", "in_domain 1"},
        {"out_of_domain 0"},
        {"0", "1"},
        {"0"},
    ]


def test_games_of_one_call_alone_are_those_that_were_asked_for(plays):
    online.played_games(Study(), 5, "in_domain", "prompt", None, 1)
    assert plays == [[("in_domain 0", "prompt")]]
