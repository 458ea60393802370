"""The non-linearity of a recipe, and the small net of §3.1."""

import pytest
import torch

from alexnet_nb.relu import CifarNet, activation


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_activation_equals_torchs(name):
    x = torch.randn(1000) * 3
    assert torch.equal(activation(name)(x), getattr(torch, name)(x))


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"activation: got 'sigmoid'.*relu, tanh"):
        activation("sigmoid")


def test_the_small_net_differs_in_its_activation_only():
    """The same seed gives the same weights, another one gives others."""
    relu, tanh, other = CifarNet(), CifarNet("tanh"), CifarNet(seed=1)
    weights = tanh.state_dict()
    for name, weight in relu.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert not torch.equal(relu.fc.weight, other.fc.weight)
    kinds = [type(module).__name__ for module in tanh.modules()]
    assert kinds.count("Tanh") == 3
    assert "ReLU" not in kinds
