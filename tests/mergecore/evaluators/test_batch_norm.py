"""Statistics are those of `torch.optim.swa_utils.update_bn`; the network is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from mergecore.evaluators.batch_norm import estimate_statistics, norm_layers
from tests.mergecore.evaluators.pico_resnet import candidate, resnet

BATCHES = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 + 1


def estimated(module: torch.nn.Module, count: int = 3) -> dict[str, torch.Tensor]:
    return estimate_statistics(candidate(module), module, count, BATCHES.__getitem__)


@pytest.mark.parametrize("library", ["transformers", "timm", "torchvision"])
def test_equals_update_bn_and_touches_nothing(library: str) -> None:
    module = resnet(library)
    expected = copy.deepcopy(module)
    torch.optim.swa_utils.update_bn(BATCHES, expected)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    places = [buffer.data_ptr() for buffer in module.buffers()]
    found = estimated(module)
    assert set(found) == {name for name in before if name.endswith(("running_mean", "running_var"))}
    for name, tensor in found.items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
        assert not torch.equal(tensor, before[name]), name
    assert_untouched(module, before, places)


def assert_untouched(module: torch.nn.Module, before: dict[str, torch.Tensor], places: list[int]) -> None:
    assert [buffer.data_ptr() for buffer in module.buffers()] == places
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(layer.momentum == 0.1 and not layer.training for layer in norm_layers(module).values())


def test_touches_nothing_when_a_pass_fails() -> None:
    module = resnet("transformers")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    places = [buffer.data_ptr() for buffer in module.buffers()]

    def batch(number: int) -> torch.Tensor:
        if number == 1:
            raise ValueError("torn file")
        return BATCHES[number]

    with pytest.raises(ValueError, match="torn file"):
        estimate_statistics(candidate(module), module, 3, batch)
    assert_untouched(module, before, places)


def test_dropout_stays_off() -> None:
    """`update_bn` trains the whole network; what is estimated here is what the network is measured with."""
    norm = torch.nn.BatchNorm2d(3)
    module = torch.nn.Sequential(torch.nn.Dropout(0.9), norm).eval()
    found = estimated(module, 1)
    torch.testing.assert_close(found["1.running_mean"], BATCHES[0].mean((0, 2, 3)))


def test_layers_without_running_statistics_are_left_out() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3, track_running_stats=False), torch.nn.BatchNorm2d(3)).eval()
    assert list(norm_layers(module)) == ["1"]


def test_layers_that_no_pass_reaches_keep_their_statistics() -> None:
    class Auxiliary(torch.nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self[0](images)

    module = Auxiliary(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)).eval()
    assert set(estimated(module)) == {"0.running_mean", "0.running_var"}
