from __future__ import annotations

import re

import pytest
import torch

from convexport.runtime.errors import UsageError
from convexport.training import models, recipes

# LeNet-5 with the full C3 has 61,706 parameters; the others were counted by hand from their configurations.
PARAMETERS = {
    "lenet5": 61_706,
    "vgg11": 9_228_362,
    "vgg13": 9_413_066,
    "vgg16": 14_724_042,
    "vgg19": 20_035_018,
    "softmax": 784 * 10 + 10,
    "mlp": 784 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10,
    "cnn-mnist": 21_840,
    "cnn-fashion": 93_322,
    "cnn-cifar10": 92_760,
    "cnn-keras": 586_250,
}


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_has_its_parameters_and_gives_logits(name: str) -> None:
    entry = models.entry(name)
    network = models.build(name, {"classes": 7, "channels": entry.channels}).eval()
    assert models.parameter_count(models.build(name)) == PARAMETERS[name]
    assert network(torch.zeros(2, entry.channels, entry.size, entry.size)).shape == (2, 7)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_has_two_recipes_on_its_data_set(name: str) -> None:
    table = recipes.RECIPES[name, models.entry(name).dataset]
    assert set(table) - {"long"} == {"quick", "full"}


def test_a_long_recipe_stands_only_where_it_was_measured_on_a_gpu() -> None:
    there = {key: table["long"].measured for key, table in recipes.RECIPES.items() if "long" in table}
    assert set(there) == {(f"vgg{layers}", "cifar10") for layers in (11, 13, 16, 19)}
    assert all("NVIDIA" in measured for measured in there.values())
    with pytest.raises(UsageError) as caught:
        recipes.find("lenet5", "mnist", "long")
    assert str(caught.value) == "recipe 'long' is not known; known: quick, full"


def test_every_recipe_names_its_source_and_what_was_measured_with_it() -> None:
    for key, table in recipes.RECIPES.items():
        for length, recipe in table.items():
            assert recipe.source, (key, length)
            assert re.fullmatch(r"\d+\.\d+ %.*, .*n = \d+, .*, \d{4}-\d\d-\d\d", recipe.measured), (key, length)


def test_a_selu_vgg_has_no_relu() -> None:
    kinds = {type(layer).__name__ for layer in models.build("vgg11", {"activation": "selu"}).modules()}
    assert "SELU" in kinds
    assert "ReLU" not in kinds


def test_an_unknown_activation_gets_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        models.build("vgg11", {"activation": "tanh"})
    assert str(caught.value) == "activation 'tanh' is not known; known: relu, selu"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg91", "model 'vgg91' is not known; did you mean 'vgg19'?"),
        ("zzz", f"model 'zzz' is not known; known: {', '.join(models.MODELS)}"),
    ],
)
def test_an_unknown_network_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        models.build(name)
    assert str(caught.value) == message


def test_normalization_is_pixels_over_255_less_mean_over_deviation() -> None:
    seen: list[torch.Tensor] = []
    network = torch.nn.Sequential(torch.nn.Identity())
    network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    models.logits(network, images, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, 0.2, 0.4]))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([1.0, 0.0, -0.25]))


def test_an_identity_start_passes_channels_through() -> None:
    network = models.build("vgg11")[0]
    models.start_near_identity(network)
    layer = network[8]
    assert isinstance(layer, torch.nn.Conv2d)
    images = torch.rand(1, 128, 4, 4)
    assert torch.equal(torch.nn.functional.conv2d(images, layer.weight, padding=1)[:, :128], images)


@pytest.mark.parametrize("classes", [-1, 2**40, 2**64, "ten"], ids=str)
def test_a_network_of_impossible_size_is_wrong_use(classes: object) -> None:
    with pytest.raises(UsageError) as caught:
        models.build("softmax", {"classes": classes})
    assert caught.value.message.startswith(f"model 'softmax' does not take {{'classes': {classes!r}}} (")
