"""The photo recipe end to end on a folder of coloured squares: measured, resumed to the same bytes, audited."""

from __future__ import annotations

import json
import shutil
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from mmslm.config import ConfigError
from mmslm.data.coco import CocoPhotos
from mmslm.evaluation.captions import DocumentFrequency
from mmslm.generation import Narrator
from mmslm.photo_recipe import learning
from mmslm.photo_recipe.account import LEDGER, PhotoAccount
from mmslm.photo_recipe.batches import PROMPT, Captions
from mmslm.photo_recipe.run import train_photos
from mmslm.photo_recipe.settings import PhotoRecipe
from mmslm.photo_recipe.talking import consensus
from mmslm.photo_recipe.views import view
from mmslm.pretrained import load_model
from mmslm.prompts import CAPTION_PROMPTS
from mmslm.tokenizer import MMSLMTokenizer, train_tokenizer
from privacy.audit import audit_paths
from privacy.ledger import Ledger

COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 210)}
SECRET = "zanzibar"  # a word of the private captions alone


def write_folder(folder: Path, photos: int) -> Path:
    """Squares of one colour, three captions each, as captions.json and images.zip."""
    folder.mkdir()
    images, annotations = [], []
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(photos):
            name, colour = list(COLOURS.items())[number % 3]
            picture = BytesIO()
            Image.new("RGB", (40, 40), tuple(max(0, c - number) for c in colour)).save(picture, "PNG")
            archive.writestr(f"{number}.png", picture.getvalue())
            images.append({"id": number, "file_name": f"{number}.png", "class": name})
            said = (f"A {name} field .", f"There is a {name} field .", f"A {name} field in {SECRET} .")
            annotations += [{"image_id": number, "caption": text} for text in said]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train, val, public.json, the weights of a small tower, and a cache that the tests share."""
    top = tmp_path_factory.mktemp("photos")
    write_folder(top / "train", 24)
    write_folder(top / "val", 12)
    said = [
        f"A {colour} {thing} on the {place} ."
        for colour in COLOURS
        for thing in ("cup", "bus")
        for place in ("table", "road")
    ]
    annotations = [{"image_id": number // 2, "caption": text} for number, text in enumerate(said)]
    (top / "public.json").write_text(json.dumps({"annotations": annotations}))
    torch.manual_seed(0)
    trunk = timm.create_model("mobilenetv2_035", pretrained=False, num_classes=0)
    for norm in [module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]:
        norm.momentum = 1.0
    trunk.train()(torch.randn(16, 3, 64, 64))  # norms that fit the random weights, or features fade to nothing
    save_file(trunk.state_dict(), top / "tower.safetensors")
    return top


def recipe(place: Path, **changes: Any) -> PhotoRecipe:
    values: dict[str, Any] = {
        "name": "squares",
        "data": {
            "train": place / "train",
            "val": place / "val",
            "public_captions": place / "public.json",
        },
        "tower": {
            "name": "timm:mobilenetv2_035",
            "weights": place / "tower.safetensors",
            "size": 64,
            "grid": 1,
            "levels": (1,),
            "views": 2,
        },
        "decoder": {"hidden": 32, "layers": 1, "heads": 2, "key_value_heads": 1, "feed_forward": 48, "vocabulary": 420},
        "reading": {"steps": 6, "batch": 4},
        "training": {
            "epochs": 120,
            "batch": 12,
            "learning_rate": 5e-3,
            "warmup": 5,
            "label_smoothing": 0.0,
            "feature_dropout": 0.0,
            "word_dropout": 0.0,
            "average": 0.8,
        },
        "privacy": {"delta": 1e-2, "steps": 5, "sampling_rate": 0.5},
        "talking": {"samples": 4, "tokens": 24},
        "cache": place / "cache",
        "checkpoint_every": 7,
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return PhotoRecipe(**values)


def private(place: Path, **changes: Any) -> PhotoRecipe:
    given = {"epsilon": 8.0, "delta": 1e-2, "steps": 5, "sampling_rate": 0.5, "learning_rate": 0.01}
    return recipe(place, privacy=given | changes.pop("privacy", {}), checkpoint_every=20, **changes)


@pytest.fixture(scope="module")
def open_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("open") / "run"
    train_photos(recipe(data), out)
    return out


@pytest.fixture(scope="module")
def private_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("private") / "run"
    train_photos(private(data), out)
    return out


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_run_learns_what_photos_show_and_is_measured_beside_the_floors(open_run: Path) -> None:
    found = json.loads((open_run / "metrics.json").read_text())
    assert set(found["scores"]) == {
        "greedy",
        "consensus of draws",
        "floor: nearest photo's caption",
        "floor: consensus of ten photos",
    }
    for scores in found["scores"].values():
        interval = scores["CIDEr"]["interval"]
        assert interval["low"] <= scores["CIDEr"]["value"] <= interval["high"]
    colours = list(COLOURS) * 4  # the order of the photos that are described
    said = list(found["captions"].values())
    assert sum(colour in text for colour, text in zip(colours, said, strict=True)) >= 8, said
    assert Image.open(open_run / "sheet.png").width > 400
    assert found["photos"] == 12 and found["cpu_seconds"]["training"] > 0


def test_the_model_talks_through_the_house_narrator(open_run: Path, data: Path) -> None:
    narrator = Narrator.load(open_run / "model")
    photo = CocoPhotos(data / "val")[0]
    said = narrator.say(narrator.look(photo.image()), PROMPT).text
    assert said and said.split()[0] in {"A", "There"}


@pytest.mark.parametrize("kind", ["open", "private"])
def test_a_stopped_run_ends_with_the_same_bytes(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_run: Path, private_run: Path
) -> None:
    settings, whole, stop_at = (recipe(data), open_run, 40) if kind == "open" else (private(data), private_run, 3)
    calls, real = [0], learning.caption_losses

    def interrupted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == stop_at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(learning, "caption_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_photos(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    train_photos(settings, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(whole)
    if kind == "private":
        assert len(Ledger.open(tmp_path / "run" / LEDGER).events()) == 5  # a step repeated from its seed is paid once
    # A finished run only measures again.
    before = (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    train_photos(settings, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_private_report_audits_clean_and_says_what_it_does_not_cover(private_run: Path) -> None:
    result = audit_paths([private_run])
    assert result.exit_code == 0, result.to_text()
    checks = {check.id: check.verdict for check in result.reports[0].checks}
    assert checks["integrity"] == "pass", result.to_text()  # the ledger names the data, its settings and its last model
    assert not list(private_run.rglob("*key*")), "what an auditor gets holds no key"
    report = json.loads((private_run / "report.json").read_text())
    assert report["claim"]["unit"] == "example" and 0 < report["claim"]["epsilon"] <= 8
    assert report["data"]["tokenizer_trained_on"] == "public captions only"
    scores = json.loads((private_run / "metrics.json").read_text())["scores"]
    assert not any("floor" in name for name in scores)  # floors repeat people's own words


def test_an_edited_private_run_fails_its_audit(private_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(private_run, copy)
    with (copy / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert audit_paths([copy]).exit_code == 1


def test_the_vocabulary_of_a_private_run_follows_from_public_words_alone(
    private_run: Path, open_run: Path, data: Path
) -> None:
    public = [item["caption"] for item in json.loads((data / "public.json").read_text())["annotations"]]
    expected = train_tokenizer([*public, *CAPTION_PROMPTS.values()], None, 420).get_vocab()
    assert MMSLMTokenizer.load(private_run / "tokenizer").get_vocab() == expected
    assert MMSLMTokenizer.load(open_run / "tokenizer").get_vocab() != expected  # so the test can fail


def test_one_photo_with_all_its_rows_is_clipped_as_one(private_run: Path, data: Path, tmp_path: Path) -> None:
    """The engine's sum over photos of two rows each equals a loop: one backward per photo, clipped, added."""
    model, processor = load_model(private_run / "model")
    settings = private(data, privacy={"clip_norm": 0.5})
    photos = CocoPhotos(data / "train")
    captions = Captions([p.captions for p in photos], processor, DocumentFrequency([[["a"]], [["b"]]]), 24)
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    width = model.config.vision.hidden_size
    rows = [ids for photo in range(3) for ids in captions.ids[photo][:2]]
    batch = {**captions.rows(rows), "seen": torch.randn(6, 1, width, generator=generator)}

    expected = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()}
    for photo in range(3):
        part = {name: value[2 * photo : 2 * photo + 2] for name, value in batch.items()}
        loss = learning.caption_losses(model, part).mean()
        grads = torch.autograd.grad(loss, list(trained.values()))
        norm = sum(float(g.double().square().sum()) for g in grads) ** 0.5
        assert norm > 0.5  # so that clipping does something
        for name, g in zip(trained, grads, strict=True):
            expected[name] += g.double() * min(1.0, 0.5 / norm)

    account = PhotoAccount(settings, model, 24, tmp_path)
    account.engine.backward(learning.caption_losses(model, batch).view(3, 2).mean(dim=1))
    sums = {account.engine.names[p]: total for p, total in account.engine.take().items()}
    account.engine.close()
    assert set(sums) == set(expected)
    for name, total in sums.items():
        assert torch.allclose(total.double(), expected[name], rtol=1e-4, atol=2e-6), name


def test_without_a_tower_the_front_end_is_trained(data: Path, tmp_path: Path) -> None:
    settings = recipe(data, tower={"weights": None, "views": 2}, training={"epochs": 1, "batch": 12})
    before = train_photos(settings, tmp_path / "run")
    assert "greedy" in before
    model, _ = load_model(tmp_path / "run" / "model")
    assert model.config.vision.kind == "conv_stem"


def test_held_out_photos_are_the_last_of_each_class_and_are_not_trained_on(data: Path, tmp_path: Path) -> None:
    settings = recipe(data, data={"measure": "dev", "held_out": 2}, training={"epochs": 1, "batch": 12})
    train_photos(settings, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(found["captions"]) == {f"train/{number}" for number in range(18, 24)}


def test_what_would_leak_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="public_captions"):
        private(data, data={"public_captions": None})
    with pytest.raises(ValueError, match="1 / N"):
        train_photos(private(data, privacy={"delta": 0.2}), tmp_path / "run")


def test_another_runs_folder_is_refused(open_run: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        train_photos(recipe(data, seed=1), open_run)


def test_the_consensus_is_the_caption_that_agrees_with_most() -> None:
    frequency = DocumentFrequency([[["a", "river"]], [["a", "road"]], [["some", "trees"]]])
    said = ["some trees", "a river", "a river", "a road"]
    assert consensus(said, frequency) == "a river"
    assert consensus(["a road"], frequency) == "a road"
    with pytest.raises(ValueError, match="no caption"):
        consensus([], frequency)


def test_the_eight_views_are_all_turns_and_mirrors() -> None:
    pixels = torch.arange(9).view(1, 3, 3)
    seen = [view(pixels, number) for number in range(8)]
    assert torch.equal(seen[0], pixels)
    assert len({tuple(one.flatten().tolist()) for one in seen}) == 8
    assert all(int(one[0, 1, 1]) == 4 for one in seen)
