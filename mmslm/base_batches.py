"""The mix of batches that the base model is trained on. Batch ``step`` is a function of (seed, step) alone.

- *pictures*: a public picture and a few turns about it, in random order, and what its cells should spell;
- *text*: turns without a picture, about all kinds;
- *word pictures*: an imagined scene whose words, as embeddings among noise, stand where a picture's tokens would, each
  in the cell where the thing would be. It teaches the decoder to say what its image tokens spell. Image experts trained
  later, under privacy, then only have to spell. (Training a captioner on text alone, through the embedding of the text,
  is DeCap's idea, arXiv:2303.03032; here the words have places.)

Beside the replies, the image tokens of public pictures are trained to spell (``spelling_loss``): it is dense, and makes
the picture's tokens speak the same language as the word pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmslm.config import BaseRecipe
from mmslm.data.public_split import SPELLED, ImaginedScene, PublicPhotos, Turns
from mmslm.model.losses import IGNORED
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.processing import EncodedTurns, MMSLMProcessor, normalise
from mmslm.training import Batch, sample_losses


class Batches:
    """Endless and repeatable: a resumed run sees what an undisturbed one would have seen."""

    def __init__(
        self,
        recipe: BaseRecipe,
        photos: PublicPhotos,
        imagined: Sequence[ImaginedScene],
        processor: MMSLMProcessor,
        model: MMSLMForConditionalGeneration,
    ) -> None:
        self.recipe, self.photos, self.imagined, self.processor, self.model = recipe, photos, imagined, processor, model
        self._ids: dict[str, list[int]] = {}

    def iterate(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Batches from step ``first`` on."""
        step = first
        while True:
            yield self.at(step)
            step += 1

    def at(self, step: int) -> dict[str, Tensor]:
        """The batch of ``step``: what the model's forward takes."""
        dice = np.random.default_rng([self.recipe.seed, step])
        settings = self.recipe.optimisation
        kind = dice.random()
        if kind < settings.text_share:
            return self._text(dice)
        if kind < settings.text_share + settings.word_image_share:
            return self._word_pictures(dice)
        return self._pictures(dice)

    def _turns(self, captions: Turns, questions: Turns, dice: np.random.Generator) -> Turns:
        turns = [captions[dice.integers(len(captions))]]
        turns += [questions[place] for place in dice.permutation(len(questions))[: self.recipe.scenes.turns - 1]]
        return [turns[place] for place in dice.permutation(len(turns))]

    def _pictures(self, dice: np.random.Generator) -> dict[str, Tensor]:
        chosen = dice.integers(len(self.photos.pictures), size=self.recipe.optimisation.batch)
        rows = [self._encode(self._turns(self.photos.captions[i], self.photos.questions[i], dice), 1) for i in chosen]
        spelled = torch.from_numpy(self.photos.spelled[chosen])
        return {
            **self._padded(rows),
            "pixel_values": normalise(self.photos.pictures[chosen])[:, None],
            "spelled": spelled,
        }

    def _text(self, dice: np.random.Generator) -> dict[str, Tensor]:
        chosen = dice.integers(len(self.imagined), size=2 * self.recipe.optimisation.batch)
        return self._padded([self._encode([self.imagined[i].captions[dice.integers(3)]], 0) for i in chosen])

    def _word_pictures(self, dice: np.random.Generator) -> dict[str, Tensor]:
        chosen = [self.imagined[i] for i in dice.integers(len(self.imagined), size=self.recipe.optimisation.batch)]
        batch = self._padded([self._encode(self._turns(scene.captions, scene.questions, dice), 1) for scene in chosen])
        cells, ids, weights = [], [], []
        count = self.model.config.tokens_per_image
        for row, scene in enumerate(chosen):
            strength = float(dice.uniform(0.7, 1.8))
            for cell, word, weight in scene.cells:
                spelled = self._words(word)
                cells += [row * count + cell] * len(spelled)
                ids += spelled
                weights += [strength * weight / len(spelled)] * len(spelled)
        with torch.no_grad():
            table = self._table()
            spread = float(table.square().mean().sqrt())
            noise = dice.standard_normal((len(chosen) * count, table.shape[1]), dtype=np.float32)
            features = torch.from_numpy(noise) * (0.5 * spread)
            spoken = table[torch.tensor(ids)] * torch.tensor(weights)[:, None]
            features.index_add_(0, torch.tensor(cells), spoken)
        return {**batch, "image_features": features.view(len(chosen), count, -1)}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """[B] in nats: the loss of each sample's replies, and of its picture's spelling where it has one."""
        assert isinstance(model, MMSLMForConditionalGeneration)
        if "spelled" not in batch:
            return sample_losses(model, batch)
        others = {name: value for name, value in batch.items() if name not in ("spelled", "pixel_values")}
        features = model.encode_images(batch["pixel_values"])
        replies = sample_losses(model, {**others, "image_features": features})
        return replies + self.recipe.optimisation.spelling_weight * self.spelling_loss(features, batch["spelled"])

    def spelling_loss(self, features: Tensor, spelled: Tensor) -> Tensor:
        """How badly image tokens spell: features [B, cells, D], spelled [B, cells, words] -> [B], nats per cell.

        A token spells a word where it points along the word's embedding: most of the token has to be its words, as in
        the word pictures, or the decoder would have to read them under something louder. A second, small term keeps
        tokens about as long as embeddings are.
        """
        with torch.no_grad():
            table = self._table()
            words = torch.stack([table[self._words(word)].mean(0) for word in SPELLED])
            words = words / words.square().mean(1, keepdim=True).sqrt()
            usual = table.square().mean().sqrt()
        features = features.float()
        loudness = features.square().mean(2, keepdim=True).add(1e-6).sqrt()
        heard = (features / loudness) @ words.T.float() / features.shape[2]  # correlation, -1 to 1
        wrong = F.binary_cross_entropy_with_logits(14.0 * heard - 4.0, spelled.float(), reduction="none").sum(2).mean(1)
        return wrong + (loudness / (1.5 * usual)).log().square().mean((1, 2))

    def _table(self) -> Tensor:
        """The word embeddings, [V, D]."""
        table = self.model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return table

    def _words(self, text: str) -> list[int]:
        # Prompts and words repeat endlessly; each is encoded once.
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = self.processor.tokenizer.encode_text(" " + text)
        return found

    def _encode(self, turns: Turns, images: int) -> EncodedTurns:
        """What ``MMSLMProcessor.encode_turns`` gives, with every text encoded once."""
        tokenizer = self.processor.tokenizer
        ids = self.processor.encode_images_prefix(images)
        labels = [IGNORED] * len(ids)
        for prompt, reply in turns:
            asked = [tokenizer.user_token_id, *self._words(prompt), tokenizer.assistant_token_id]
            said = [*self._words(reply), tokenizer.eos_token_id]
            ids += asked + said
            labels += [IGNORED] * len(asked) + said
        return EncodedTurns(ids, labels)

    def _padded(self, rows: Sequence[EncodedTurns]) -> dict[str, Tensor]:
        """Right-padded [B, T] ids, attention mask and labels."""
        length = max(len(row.input_ids) for row in rows)
        ids = torch.full((len(rows), length), self.processor.tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), IGNORED)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for place, row in enumerate(rows):
            here = len(row.input_ids)
            ids[place, :here] = torch.tensor(row.input_ids)
            labels[place, :here] = torch.tensor(row.labels)
            mask[place, :here] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
