"""What the tests check of every call: shapes and dtypes of arrays, as annotated."""

import pytest
import torch
from jaxtyping import TypeCheckError

from interp.engine.packing import ancestors
from interp.models.unembedding import log_probability
from tests import shapes


def test_an_array_of_another_shape_or_dtype_than_annotated_is_an_error(llama):
    hidden, rows = torch.zeros(3, llama.d_model), torch.zeros(2, dtype=torch.long)
    assert log_probability(llama, hidden, rows, rows).shape == (2,)
    with pytest.raises(TypeCheckError, match="'token'"):
        log_probability(llama, hidden, rows, torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeCheckError, match="'hidden'"):
        log_probability(llama, hidden.long(), rows, rows)


def test_only_arrays_are_checked():
    assert set(shapes.array_types(ancestors.__wrapped__)) == {"return"}
