"""Examples in docstrings, shown as code: a block of lines after `>>>` stands between fences."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n)(?! *$).*)*", re.MULTILINE)


class Fenced(griffe.Extension):
    """Fences every example of a docstring that is not in a section of its own."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
