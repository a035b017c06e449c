"""Names of the release before: they work, and say what they are called now."""

import pytest

import interp
from interp.environments.base import Environment
from interp.results.tables import read_table, write_table


def test_an_environment_is_made_and_read_with_its_old_names():
    with pytest.warns(DeprecationWarning, match="'is_correct' now"):
        found = Environment("mine", listed=False, right=lambda decision, action: True)
    assert found.closed_actions is False and found.is_correct(None, "look")
    with pytest.warns(DeprecationWarning, match="Environment.listed is called 'closed_actions' now"):
        assert found.listed is False


def test_prompt_formats_answer_to_their_old_names(fmt):
    for old, new, given in (("opening", "mode_prefix", "cot"), ("tail", "action_prefix", None)):
        with pytest.warns(DeprecationWarning, match=new):
            assert getattr(fmt, old)(given) == getattr(fmt, new)(given)
    with pytest.warns(DeprecationWarning, match="stop_tokens"):
        assert fmt.ends == fmt.stop_tokens


def test_arguments_go_by_their_old_names_but_not_by_both(fmt, episodes):
    decisions = episodes["test_in_domain"][0].decisions()
    with pytest.warns(DeprecationWarning, match="swap_candidates"):
        assert interp.make_pairs(fmt, decisions, 1, partners=lambda d, every: [])[:2] == ([], [])
    with pytest.raises(TypeError, match="one argument"):
        interp.make_pairs(fmt, decisions, 1, partners=None, swap_candidates=None)


@pytest.mark.parametrize("table, new", [("conflict", "inserted_trace"), ("masking", "condition")])
def test_tables_of_old_runs_are_read_with_the_columns_of_today(tmp_path, table, new):
    import pandas as pd

    write_table(tmp_path, table, pd.DataFrame(dict(arm=["a"], reader=["probe"], value=[1.0])), {})
    assert list(read_table(tmp_path, table)[0]) == [new, "predictor", "value"]
