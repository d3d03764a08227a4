"""The converted MobileNetV2 computes what its npz says: an independent forward pass from the npz is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mmslm.data.photo import open_image
from mmslm.mobilenet import convert_mobilenet, mobilenet_state
from mmslm.model.tower import freeze_trunk, read_cells
from mmslm.processing import normalise, to_pixels
from mmslm.tower_conversion import stated_pixels

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
REAL = SHARED / "encoders" / "mobilenet_v2_1.0_224_quant.npz"

real = pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/encoders (the real weights)")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz of the right shapes with random numbers of a sensible size."""
    generator = np.random.default_rng(0)
    trunk = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=1001)
    # In timm's order of use: a stem, blocks of expansion, depthwise, projection; a head; the classifier.
    layers = [m for m in trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    arrays: dict[str, np.ndarray] = {}
    for number, layer in enumerate(layers):
        fan = layer.weight[0].numel()
        arrays[f"{number:02d}.weight"] = (generator.standard_normal(layer.weight.shape) * (1.6 / fan) ** 0.5).astype(
            np.float16
        )
        arrays[f"{number:02d}.bias"] = generator.standard_normal(layer.weight.shape[0]).astype(np.float32) * 0.3
        depthwise = layer.groups > 1
        narrow = number >= 2 and not depthwise and number not in (len(layers) - 1,) and layers[number - 1].groups > 1
        activation = 0 if narrow else 3
        arrays[f"{number:02d}.meta"] = np.array([layer.stride[0], layer.groups, activation])
    last = len(layers)
    arrays[f"{last:02d}.weight"] = (generator.standard_normal((1001, 1280, 1, 1)) * 0.02).astype(np.float16)
    arrays[f"{last:02d}.bias"] = np.zeros(1001, np.float32)
    arrays[f"{last:02d}.meta"] = np.array([1, 1, 0])
    path = tmp_path_factory.mktemp("npz") / "mobilenet.npz"
    np.savez(path, **arrays)
    return path


def by_hand(path: Path, pixels: Tensor) -> Tensor:
    """The network straight from the npz, with TensorFlow's padding: pixels [n, 3, H, W] -> logits [n, 1001]."""
    arrays = np.load(path)

    def layer(x: Tensor, number: int) -> Tensor:
        weight = torch.from_numpy(arrays[f"{number:02d}.weight"].astype(np.float32))
        stride, groups, activation = (int(value) for value in arrays[f"{number:02d}.meta"])
        kernel = weight.shape[-1]
        total = max((-(-x.shape[2] // stride) - 1) * stride + kernel - x.shape[2], 0)
        x = F.pad(x, (total // 2, total - total // 2, total // 2, total - total // 2))
        x = F.conv2d(x, weight, torch.from_numpy(arrays[f"{number:02d}.bias"]), stride=stride, groups=groups)
        return x.clamp(0, 6) if activation == 3 else x

    x = pixels
    for number in (0, 1, 2):
        x = layer(x, number)
    for first in range(3, 51, 3):
        y = layer(layer(layer(x, first), first + 1), first + 2)
        x = x + y if x.shape == y.shape else y
    x = layer(x, 51).mean((2, 3), keepdim=True)
    return layer(x, 52).flatten(1)


def timm_model(path: Path, tmp_path: Path, **options: str) -> torch.nn.Module:
    file = convert_mobilenet(path, tmp_path / "tower.safetensors")
    model = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=1001, **options).eval()
    model.load_state_dict(load_file(file))
    return model


@torch.no_grad()
def test_with_tensorflows_padding_nothing_is_lost(made: Path, tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, expected = timm_model(made, tmp_path, pad_type="same")(pixels), by_hand(made, pixels)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_folding_the_norms_keeps_the_function(made: Path, tmp_path: Path) -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = timm_model(made, tmp_path)
    before = model.forward_features(pixels)
    after = freeze_trunk(model).forward_features(pixels)
    assert (after - before).abs().max() < 1e-4 * before.abs().max()


@torch.no_grad()
def test_cells_are_averages_of_the_maps_and_earlier_levels_stand_in_front(made: Path, tmp_path: Path) -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    trunk = freeze_trunk(timm_model(made, tmp_path))
    last, between = trunk.forward_intermediates(pixels, indices=[3])
    cells = read_cells(trunk, pixels, None, (3,), 1)
    assert torch.allclose(cells[0, 0, :96], between[0].mean((2, 3))[0], atol=1e-5)
    assert torch.allclose(cells[0, 0, 96:], last.mean((2, 3))[0], atol=1e-5)
    plain = read_cells(trunk, pixels, None, (), 2)
    assert torch.allclose(plain.transpose(1, 2).reshape(last.shape), last, atol=1e-6)
    with pytest.raises(ValueError, match="stages"):
        read_cells(trunk, pixels, None, (99,), 2)


def test_a_converted_file_says_how_its_pixels_are_normalised(made: Path, tmp_path: Path) -> None:
    file = convert_mobilenet(made, tmp_path / "tower.safetensors")
    assert stated_pixels(file) == ([0.5] * 3, [0.5] * 3)
    assert stated_pixels("random") is None and stated_pixels(None) is None


def test_another_network_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, **{"00.weight": np.zeros((8, 3, 3, 3), np.float16), "00.bias": np.zeros(8, np.float32)})
    with pytest.raises(ValueError, match="holds 1 convolutions"):
        mobilenet_state(wrong)
    torn = tmp_path / "torn.npz"
    torn.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="no npz"):
        mobilenet_state(torn)
    with pytest.raises(FileNotFoundError):
        mobilenet_state(tmp_path / "absent.npz")


@real
@torch.no_grad()
@pytest.mark.parametrize("padding", ["", "same"])
def test_the_real_weights_name_what_photos_show(tmp_path: Path, padding: str) -> None:
    model = timm_model(REAL, tmp_path, pad_type=padding)
    # Class numbers of ImageNet plus one for the background: chickadee, macaw, hot dog, dragonfly, Egyptian cat.
    shown = {"bird": 20, "parrot": 89, "hot_dog": 935, "dragonfly": 320, "cat_720p": 286}
    for name, number in shown.items():
        photo = open_image(SHARED / "demo_photos" / f"{name}.jpg")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        pixels = normalise(to_pixels(photo.crop((left, top, left + side, top + side)), 224))[None]
        assert int(model(pixels).argmax()) == number, name


@real
@torch.no_grad()
def test_the_real_weights_equal_the_pass_by_hand(tmp_path: Path) -> None:
    pixels = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, expected = timm_model(REAL, tmp_path, pad_type="same")(pixels), by_hand(REAL, pixels)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
