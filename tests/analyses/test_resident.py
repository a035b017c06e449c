"""What a process keeps from analysis to analysis."""

import copy

from analyses import resident


def test_prompts_are_made_once_for_a_tokenizer_and_let_go_with_the_model(fmt, prompts, monkeypatch):
    decisions = [prompt.decision for prompt in prompts[:4]]
    monkeypatch.setattr(resident, "_kept", None)
    monkeypatch.setattr(resident, "_prompts", {})
    assert resident.prompts(fmt, decisions)[0] is not resident.prompts(fmt, decisions)[0], "nothing is kept"
    resident.keep()
    first = resident.prompts(fmt, decisions)
    assert [p.ids for p in first] == [p.ids for p in prompts[:4]]
    again = resident.prompts(fmt, copy.deepcopy(decisions))
    assert again is not first and all(a is b for a, b in zip(again, first, strict=True))
    assert len(resident.prompts(fmt, decisions[:3])) == 3
    other = copy.copy(fmt)  # of another tokenizer with the same vocabulary
    other.tokenizer = copy.deepcopy(fmt.tokenizer)
    assert other.hash == fmt.hash and resident.prompts(other, decisions)[0].format is other
    resident.loaded(("another",), lambda: None)
    assert resident.prompts(fmt, decisions)[0] is not first[0]
