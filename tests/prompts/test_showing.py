"""A prompt to look at: its tokens escaped, its spans in colour, its boundary and what each mode appends."""

from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

import interp
from interp.prompts import showing


class Page(HTMLParser):
    """The text and the styles of a page's tokens, and every tag in it."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.tokens, self.styles = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "bdi":
            self.styles.append(dict(attrs)["style"])
            self.tokens.append("")

    def handle_data(self, data):
        if self.tokens and self.lasttag == "bdi":
            self.tokens[-1] += data


def test_every_token_is_shown_with_its_span(prompts):
    prompt = prompts[5]
    shown = interp.show(prompt)
    page = shown._repr_html_()
    read = Page(page)
    assert read.tags <= {"div", "span", "bdi"}
    assert len(read.tokens) == len(prompt.ids) + sum(map(len, shown.prefixes.values()))
    outlined = [i for i, style in enumerate(read.styles) if "outline" in style]
    assert outlined == [prompt.boundary]
    for span in set(prompt.spans):
        assert f"{span} ({prompt.spans.count(span)})" in page
    assert set(shown.prefixes) == {"prompt", "cot"} and "mode cot goes on with" in page
    assert shown.to_frame().span.tolist() == list(prompt.spans)


def test_the_terminal_gets_a_line_for_each_run_of_a_span(prompts):
    lines = str(interp.show(prompts[5])).splitlines()
    assert lines[0].startswith(f"ShownPrompt({len(prompts[5].ids)} tokens: template")
    starts = [int(line.split()[0]) for line in lines[1:-2]]
    assert starts[0] == 0 and starts == sorted(starts)
    boundary = next(line for line in lines if line.split()[1:2] == ["boundary"])
    assert int(boundary.split()[0]) <= prompts[5].boundary
    assert lines[-1].split()[1:3] == ["mode", "cot"] and "<think>" in lines[-1]


def test_hostile_text_is_shown_as_text(tokenizer):
    text = "<script>alert(1)</script>\u202e & \"'\x07"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = SimpleNamespace(ids=ids, spans=["text"] * len(ids), tokenizer=tokenizer)
    shown = interp.show(prompt)
    assert Page(shown._repr_html_()).tags <= {"div", "span", "bdi"}
    assert "\u202e" not in shown._repr_html_() + str(shown) and "\x07" not in str(shown)
    assert "text (" in shown._repr_html_() and not shown.prefixes


def test_of_a_long_prompt_the_middle_is_left_out(tokenizer, monkeypatch):
    monkeypatch.setattr(showing, "MOST", 10)
    shown = showing.show(SimpleNamespace(ids=[5] * 30, spans=["text"] * 30), tokenizer)
    page = shown._repr_html_()
    assert page.count("<bdi") == 10 and "20 tokens" in page


def test_without_a_tokenizer_a_sentence_says_so():
    with pytest.raises(ValueError, match="no tokenizer .*model.tokenizer"):
        interp.show(SimpleNamespace(ids=[1], spans=["text"]))


def test_a_prompt_is_one_line(prompts):
    prompt = prompts[0]
    told = f"Prompt({len(prompt.ids)} tokens, boundary {prompt.boundary}, decision 'test_in_domain/0#0')"
    assert repr(prompt) == told
