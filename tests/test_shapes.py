"""What the tests check of every call: shapes and dtypes of arrays, as annotated."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from interp.engine.packing import ancestors
from interp.probing.metrics import macro_f1
from tests import shapes


def test_an_array_of_another_shape_or_dtype_than_annotated_is_an_error():
    probability, code, weights = np.eye(3), np.arange(3), np.ones((2, 3))
    assert macro_f1(probability, code, weights).shape == (2,)
    with pytest.raises(TypeCheckError, match="'code'"):
        macro_f1(probability, np.arange(4), weights)
    with pytest.raises(TypeCheckError, match="'weights'"):
        macro_f1(probability, code, weights[0])
    with pytest.raises(TypeCheckError, match="'code'"):
        macro_f1(probability, code.astype(float), weights)


def test_only_arrays_are_checked():
    assert set(shapes.array_types(ancestors.__wrapped__)) == {"return"}
