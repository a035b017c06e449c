"""Shapes and dtypes of arrays, checked against their annotations wherever a test calls the library.

jaxtyping's import hook puts `checked` around every function of `interp`. What is annotated as one array, such as
`Float[Tensor, "row token"]`, is checked where an array is given, and axes of one name must be of one size within
a call. Other annotations are mypy's: in tests many a thing stands for another.
"""

import functools
import inspect
import re
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import torch
from jaxtyping import AbstractArray

#: An annotation as it is kept: one array, perhaps none.
ARRAY = re.compile(r"(Float|Int|Bool|Num|Shaped)\[(Tensor|torch\.Tensor|np\.ndarray), '[^']*'\]( \| None)?")


def array_types(function):
    """Parameter, or `return` -> the array type that it is annotated as; the others are left out."""
    given = function.__annotations__
    texts = {name: text for name, text in given.items() if isinstance(text, str) and ARRAY.fullmatch(text)}
    types = get_type_hints(SimpleNamespace(__annotations__=texts), function.__globals__)
    types |= {name: each for name, each in given.items() if not isinstance(each, str)}  # made by jaxtyping
    bare = {name: next(iter(get_args(each)), each) for name, each in types.items()}
    return {name: each for name, each in bare.items() if isinstance(each, type(AbstractArray))}


def checked(function):
    """The function with its annotated arrays checked."""
    types = array_types(function)
    if not types:
        return function
    signature = inspect.signature(function)

    def check(name, value):
        if isinstance(value, (torch.Tensor, np.ndarray)) and not isinstance(value, types[name]):
            raise TypeError(f"{name} of {function.__qualname__}: {value.dtype} {tuple(value.shape)}")

    @functools.wraps(function)
    def inside(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in types:
                check(name, value)
        result = function(*args, **kwargs)
        if "return" in types:
            check("return", result)
        return result

    return inside
