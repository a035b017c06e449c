"""Features of sparse autoencoders, of one with as many features as the stream has numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp.measures.ablation import ablate
from interp.measures.features import ablate_features, features

TEXTS = ["You take the mug 1. Next", "You see a pen 1"]


class Exact(torch.nn.Module):
    """Each feature is one number of the stream, scaled, and the bias is left to the error."""

    def __init__(self, name="blocks.1.hook_resid_post"):
        super().__init__()
        self.cfg = SimpleNamespace(metadata=SimpleNamespace(hook_name=name))

    def encode(self, x):
        return 2 * x

    def decode(self, feature_acts):
        return feature_acts / 2 + 5


def test_a_feature_is_read_and_taken_out_alone(llama):
    read = features(llama, Exact(), TEXTS, at="all")
    assert (
        read.values.shape[1] == 32
        and read.decision.max() == 1
        and (read.site, read.layer) == ("resid_post", 1)
    )
    numbers = read.strongest(2)
    result = ablate_features(llama, Exact(), TEXTS, numbers, answers=(" mug", " pen"))
    for k, number in enumerate(numbers):
        direction = np.eye(32)[number]
        plain = ablate(
            llama, TEXTS, ["resid_post"], "direction", direction=direction, answers=(" mug", " pen")
        )
        np.testing.assert_allclose(result.effect[:, k], plain.effect[:, 0, 1], atol=1e-4)
        np.testing.assert_allclose(result.kl[:, k], plain.kl[:, 0, 1], atol=1e-4)


def test_what_is_no_feature_is_said(llama):
    with pytest.raises(ValueError, match="features 0 to 31, not 32"):
        ablate_features(llama, Exact(), TEXTS, [32])
    with pytest.raises(ValueError, match="features 0 to 31, not none"):
        ablate_features(llama, Exact(), TEXTS, [])
    with pytest.raises(ValueError, match="which site it is of"):
        features(llama, Exact(None), TEXTS)
