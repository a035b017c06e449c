"""Names that wrappers of a training run left on tensors, and what lies beside a language model's own.

>>> own_names(["module.model.norm.weight"], {"model.norm.weight"})
{'module.model.norm.weight': 'model.norm.weight'}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

#: What torch.compile, FSDP and activation checkpointing put into a name, wherever they wrapped a module.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: What data parallelism, peft, TRL and others put before every name.
PREFIXES = (
    "module.",
    "base_model.model.",
    "pretrained_model.",
    "_forward_module.",
    "policy.",
    "actor.",
    "model.",
)
#: Heads of values, rewards and classes, which a language model does not use.
VALUE_HEADS = re.compile(r"(v_head|value_head|critic_head|score|summary|classifier|reward_head|q_head)\.")


def unwrapped(name: str) -> str:
    """A name without what wrappers put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


#: What peft puts between a module's name and its parameter's.
INSIDE_PEFT = ("base_layer.", "token_adapter.", "original_module.", "modules_to_save.")


def in_adapter(name: str) -> str:
    """The name of an adapter's tensor as peft writes it, without what a training run's wrappers put into or
    before it."""
    plain = unwrapped(name)
    return plain[max(0, plain.find("base_model.model.")) :]


def in_base(name: str) -> str:
    """The name of an adapter's tensor in its base, where it is a parameter of the base itself."""
    plain = in_adapter(name).removeprefix("base_model.model.")
    for part in INSIDE_PEFT:
        plain = plain.replace(f".{part}", ".")
    return plain


def own_names(names: Iterable[str], wanted: Set[str]) -> dict[str, str]:
    """file name -> the model's name, where one prefix of all names stands in the way; else every name as it
    is.

    wanted: names that must be among what is left. Tensors of a value head keep their names.
    """
    names = list(names)
    plain = {name: unwrapped(name) for name in names}
    while not wanted <= set(plain.values()):
        outer = {p.partition(".")[0] for p in plain.values() if not VALUE_HEADS.match(p)}
        if len(outer) != 1 or not all("." in p for p in plain.values()):
            return {name: name for name in names}
        prefix = f"{outer.pop()}."
        plain = {name: p.removeprefix(prefix) for name, p in plain.items()}
    return plain if len(set(plain.values())) == len(plain) else {name: name for name in names}


def wrapping(names: Iterable[str]) -> str:
    """The first wrapper or prefix that is found in names, empty where none is."""
    names = list(names)
    inside = next((w for w in WRAPPERS if any(w in n for n in names)), "")
    return inside or next((p for p in PREFIXES[:-1] if any(n.startswith(p) for n in names)), "")
