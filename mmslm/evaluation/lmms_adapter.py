"""Our models in lmms-eval, the harness with which vision-language models are commonly compared.

Named as an entry point of the group `lmms_eval.models` (`mmslm = "mmslm.evaluation.lmms_adapter:manifest"`), it makes
`python -m lmms_eval --model mmslm --model_args pretrained=DIRECTORY --tasks pope` work. This is the only file that
needs lmms-eval; nothing else imports it. Several pictures of a question go to the model in their order.

Decoding is greedy, so that a number can be had again: sampling is refused, and so are tasks of several rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

if TYPE_CHECKING:
    from mmslm.generation.narrator import Narrator

PLACEHOLDER = "<image>"
LONGEST_REPLY = 64


def manifest() -> ModelManifest:
    """What lmms-eval's registry is told of us."""
    return ModelManifest(model_id="mmslm", simple_class_path=f"{__name__}.MMSLMForLmmsEval")


class MMSLMForLmmsEval(lmms):
    """A narrator behind the harness's interface. `pretrained` is a model directory or "base"."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "base",
        device: str = "cpu",
        batch_size: int | str = 16,
        narrator: Narrator | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(f"model argument {sorted(unknown)[0]!r} is unknown; give pretrained, device or batch_size")
        if narrator is None:
            from mmslm.generation.narrator import Narrator as Loader

            narrator = Loader.load(pretrained, device=device)
        self.narrator = narrator
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy replies, cut before the first stop string of each request."""
        wanted: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            options = request.args[1]
            if options.get("do_sample") or options.get("temperature") or options.get("num_beams", 1) not in (1, None):
                raise ValueError("sampling or beams were asked for; mmslm decodes greedily, set temperature to 0")
            # Tasks allow a thousand tokens; a small model that has not ended by LONGEST_REPLY repeats itself.
            tokens = min(int(options.get("max_new_tokens") or LONGEST_REPLY), LONGEST_REPLY)
            wanted.setdefault(tokens, []).append(place)
        replies: dict[int, str] = {}
        for tokens, places in wanted.items():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                asked = [requests[place].args for place in batch]
                seen = [self.narrator.look(self._pictures(args[2:])) for args in asked]
                said = self.narrator.say_batch(seen, [_plain(args[0]) for args in asked], tokens)
                for place, args, reply in zip(batch, asked, said, strict=True):
                    replies[place] = _cut(reply.text, args[1].get("until"))
        return [replies[place] for place in range(len(requests))]

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each request the log-probability (natural) of its continuation, and whether greedy decoding says it."""
        results = []
        model, processor = self.narrator.model, self.narrator.processor
        for request in requests:
            context, target, *where = request.args
            continuation = target(self._document(where)) if callable(target) else target
            pictures = self._pictures(where)
            turns = processor.encode_turns([(_plain(context), str(continuation))], images=len(pictures))
            device = model.lm_head.weight.device
            ids = torch.tensor([turns.input_ids], device=device)
            pixels = processor.pixels(pictures)[None].to(device) if pictures else None
            logits = model(input_ids=ids, pixel_values=pixels).logits[0, :-1].float()
            # The end of the reply is not part of the continuation that is asked about.
            here = torch.tensor([*turns.labels[1:-1], -100], device=device) != -100
            aims = ids[0, 1:][here]
            scores = torch.log_softmax(logits[here], dim=-1)
            sure = scores.gather(1, aims[:, None]).sum().item()
            results.append((float(sure), bool((scores.argmax(-1) == aims).all())))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported by mmslm; choose a task of one round")

    def _document(self, where: Sequence[Any]) -> Any:
        _, document, task, split = where
        return self.task_dict[task][split][document]

    def _pictures(self, where: Sequence[Any]) -> list[Image.Image]:
        found = where[0](self._document(where)) if where[0] is not None else None
        return [picture for picture in found or () if picture is not None]


def _plain(context: str) -> str:
    """The question without the harness's marks for pictures: ours stand before it, wherever the marks were."""
    return " ".join(context.replace(PLACEHOLDER, " ").split())


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.split(stop)[0]
    return text.strip()
