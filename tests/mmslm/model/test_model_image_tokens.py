"""Pictures as codes: exact round trips of ids, gradients per sample, and a picture written from a word."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmslm.model import MMSLMConfig, MMSLMForConditionalGeneration
from mmslm.model.image_tokens import FSQ, ImageTokenizer, ImageTokenizerConfig, ImageVocabulary

SMALL = ImageTokenizerConfig(
    image_size=16, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, levels=(5, 4)
)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (4, 3), (2,), (7, 2)])
def test_every_code_has_its_own_values_and_comes_back(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    codes = torch.arange(fsq.codes)
    values = fsq.values(codes)
    assert len({tuple(row) for row in values.tolist()}) == fsq.codes
    expected = {
        tuple((i - n // 2) / (n // 2) for i, n in zip(point, levels, strict=True))
        for point in itertools.product(*(range(n) for n in levels))
    }
    assert {tuple(row) for row in values.double().tolist()} == {
        tuple(torch.tensor(p).double().tolist()) for p in expected
    }
    # Numbers whose bounded value is the code's own are quantised to that code.
    level = torch.tensor(levels)
    half, offset = (level - 1) * 1.001 / 2, torch.where(level % 2 == 0, 0.5, 0.0)
    z = torch.atanh(((values * (level // 2) + offset) / half).clamp(-0.9999, 0.9999)) - torch.atanh(offset / half)
    again, ids = fsq(z)
    assert torch.equal(ids, codes)
    torch.testing.assert_close(again, values)


def test_gradients_pass_the_rounding_straight_through() -> None:
    z = torch.zeros(1, 2, requires_grad=True)
    FSQ((5, 5))(z)[0].sum().backward()
    assert z.grad is not None
    # At 0 the bound's slope is half / width = 2.002 / 2.
    torch.testing.assert_close(z.grad, torch.full((1, 2), 1.001))


def train(tokenizer: ImageTokenizer, pixels: Tensor, steps: int) -> None:
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        tokenizer(pixels).mean().backward()
        optimiser.step()


def colours() -> Tensor:
    """Four plain pictures [4, 1, 3, 16, 16]."""
    table = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
    return table[:, None, :, None, None].expand(4, 1, 3, 16, 16).contiguous()


def test_training_reconstructs_and_uses_more_than_one_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(SMALL)
    pixels = colours()
    before = float(tokenizer(pixels).detach().mean())
    train(tokenizer, pixels, 120)
    assert float(tokenizer(pixels).mean()) < 0.1 * before
    codes = tokenizer.encode(pixels)
    assert codes.shape == (4, 4)
    use = tokenizer.codebook_use(codes)
    assert 1 / 20 < use.share <= 1
    assert 1 < use.perplexity <= 20
    tokenizer.save(tmp_path)
    again = ImageTokenizer.load(tmp_path)
    assert torch.equal(again.encode(pixels), codes)
    assert torch.equal(again.decode(codes), tokenizer.eval().decode(codes))
    assert float((tokenizer.decode(codes) - pixels).pow(2).mean()) < 0.15


def test_every_pictures_gradient_and_codes_are_its_own() -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(SMALL)
    pixels = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    parameters = list(tokenizer.parameters())
    losses = tokenizer(pixels)
    for index in range(2):
        together = torch.autograd.grad(losses[index], parameters, retain_graph=True)
        single = torch.autograd.grad(tokenizer(pixels[index : index + 1])[0], parameters)
        for a, b in zip(together, single, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    codes = tokenizer.encode(pixels)
    assert torch.equal(tokenizer.encode(pixels[:, 1:2]), codes[:, 4:8])
    torch.testing.assert_close(tokenizer.decode(codes)[:, 1:2], tokenizer.decode(codes[:, 4:8]), rtol=1e-4, atol=1e-5)


def test_one_language_model_writes_the_picture_that_a_word_names_and_the_word_for_a_picture() -> None:
    """Codes stand in the vocabulary behind ten words: one model, one vocabulary, both directions (early fusion)."""
    torch.manual_seed(0)
    tokenizer, pixels = ImageTokenizer(SMALL), colours()
    train(tokenizer, pixels, 120)
    vocabulary = ImageVocabulary(first=16, codes=tokenizer.fsq.codes)
    words = torch.arange(10, 14)[:, None]
    start, painted_rows = torch.ones(4, 1, dtype=torch.long), vocabulary.to_tokens(tokenizer.encode(pixels))
    rows = torch.cat((start, words, painted_rows), dim=1)
    read = torch.cat((start, painted_rows, words), dim=1)
    both = torch.cat((rows, read))
    labels = both.clone()
    labels[:4, :2], labels[4:, :-1] = -100, -100
    text = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    model = MMSLMForConditionalGeneration(MMSLMConfig(text_config=text, vision_config={"image_size": 16}))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        model(input_ids=both, labels=labels).loss.backward()
        optimiser.step()
    written = model.eval().generate(
        input_ids=rows[:, :2],
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _row, _ids: vocabulary.tokens(),
    )[:, 2:]
    painted = tokenizer.decode(vocabulary.to_codes(written))
    nearest = (painted[:, None] - pixels[None]).pow(2).flatten(2).mean(dim=2).argmin(dim=1)
    assert nearest.tolist() == [0, 1, 2, 3]
    seen = model.generate(input_ids=read[:, :-1], max_new_tokens=1, do_sample=False)[:, -1:]
    assert torch.equal(seen, words)


def test_default_halves_stay_under_two_million_parameters() -> None:
    tokenizer = ImageTokenizer(ImageTokenizerConfig(image_size=256))
    for half in (("stem", "encoder", "before_code", "to_code"), ("from_code", "place", "decoder", "norm", "to_pixels")):
        assert sum(p.numel() for name in half for p in getattr(tokenizer, name).parameters()) < 2_000_000
    assert tokenizer.fsq.codes == 1000


def test_what_is_no_code_is_refused(tmp_path: Path) -> None:
    tokenizer = ImageTokenizer(SMALL)
    with pytest.raises(ValueError, match="0 to 19"):
        tokenizer.decode(torch.full((1, 4), 20))
    with pytest.raises(ValueError, match="whole pictures"):
        tokenizer.decode(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="others are text"):
        ImageVocabulary(16, 12).to_codes(torch.tensor([3]))
    with pytest.raises(ValueError, match="at least 2"):
        FSQ((1, 4))
    with pytest.raises(ValueError, match="3, 16, 16"):
        tokenizer.encode(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(FileNotFoundError, match="image_tokenizer"):
        ImageTokenizer.load(tmp_path)
