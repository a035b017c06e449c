"""Prompts that were logged as text, split into messages at the markers of their chat template.

>>> split_chat("<|im_start|>user\\nGo.<|im_end|>\\n<|im_start|>assistant\\nyes")
[{'role': 'user', 'content': 'Go.'}, {'role': 'assistant', 'content': 'yes'}]

Read are ChatML (Qwen and others), Llama 3 and Gemma, and ChatML that was decoded without its special tokens,
as verl logs it, where a line of its own says whose turn begins.
"""

from __future__ import annotations

import re

#: (what opens a turn and names its role, what closes it) of each template.
_TEMPLATES = (
    (re.compile(r"<\|im_start\|>(\w+)\n"), ("<|im_end|>", "<|endoftext|>")),
    (re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), ("<|eot_id|>", "<|eom_id|>")),
    (re.compile(r"<start_of_turn>(\w+)\n"), ("<end_of_turn>",)),
)
_BARE = re.compile(r"(?:\A|(?<=\n))(system|user|assistant|tool)\n")
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


def split_chat(text: str) -> list[dict]:
    """The messages of a rendered conversation; an empty list where the text has no template's markers."""
    for opening, closings in _TEMPLATES:
        if opening.search(text):
            return _split(text, opening, closings)
    text = text.lstrip()
    return _split(text, _BARE, ()) if _BARE.match(text) else []


def _split(text: str, opening: re.Pattern, closings: tuple[str, ...]) -> list[dict]:
    pieces = opening.split(text)
    messages: list[dict] = []
    for role, content in zip(pieces[1::2], pieces[2::2], strict=True):
        for closing in closings:
            content = content.partition(closing)[0]
        responses = _RESPONSE.findall(content) if role == "user" else []
        if responses and not _RESPONSE.sub("", content).strip():  # Qwen gives what tools answer as the user's
            messages += [dict(role="tool", content=each) for each in responses]
        else:
            messages.append(dict(role=role, content=content.strip("\n")))
    return messages
