"""How fast a model answers on this machine: one JSON line per case.

Cases: our model (`--model` a directory, or a tier with random weights), and, with `--others`, the shapes of transformers'
BLIP-base and SmolVLM-256M with random weights, interleaved in one run so that all see the same machine. Reported per case
in CPU-seconds of this process (so that other work on the machine matters little) and in bytes over the imports:

    first_token_s     picture in, first token out
    second_question_s the first token of another question about the same picture
    caption_s         picture in, 24 tokens out
    tokens_per_s      while decoding
    bandwidth_bound_tokens_per_s  how often the weights could be read in a second at the measured copy speed: decoding one
                                  token reads every weight once, so nothing decodes faster without smaller numbers
    peak_over_imports_mb

Run: python benchmarks/inference.py --tier nano --repeats 5 [--others]
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmslm.generation import Narrator
from mmslm.model import MMSLMForConditionalGeneration, load_tier
from mmslm.processing import MMSLMProcessor
from mmslm.tokenizer import train_tokenizer

TOKENS = 24
PROMPT, SECOND = "Describe the picture in detail.", "What colour is the cup?"


def peak_mb() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def copy_speed() -> float:
    """Bytes per second that one thread reads from memory (a sum over 256 MB, best of five)."""
    block = torch.zeros(64_000_000)
    return block.numel() * 4 / min(cpu_seconds(block.sum) for _ in range(5))


class Ours:
    """Our model through the Narrator. The end token is silenced, so that every reply has all its tokens."""

    def __init__(self, name: str, narrator: Narrator) -> None:
        self.name, self.narrator = name, narrator
        narrator._eos = -1
        self.weights = sum(p.numel() * p.element_size() for p in narrator.model.parameters())

    def first(self, image: Image.Image) -> object:
        self.kept = self.narrator.look(image)
        return next(self.narrator.stream(self.kept, PROMPT, 1))

    def second(self, image: Image.Image) -> object:
        return next(self.narrator.stream(self.kept, SECOND, 1))

    def caption(self, image: Image.Image) -> object:
        return self.narrator.say(self.narrator.look(image), PROMPT, TOKENS)


class Others:
    """A transformers model with random weights through its own generate; a second question starts anew."""

    def __init__(self, name: str, model: Any, inputs: Callable[[], dict[str, Any]]) -> None:
        self.name, self.model, self.inputs = name, model.eval(), inputs
        self.weights = sum(p.numel() * p.element_size() for p in model.parameters())

    def _generate(self, count: int) -> object:
        return self.model.generate(**self.inputs(), max_new_tokens=count, min_new_tokens=count, do_sample=False)

    def first(self, image: Image.Image) -> object:
        return self._generate(1)

    second = first

    def caption(self, image: Image.Image) -> object:
        return self._generate(TOKENS)


def ours(tier: str, folder: str | None) -> Ours:
    """The model of a directory, or a tier with random weights."""
    if folder:
        return Ours(folder, Narrator.load(folder))
    lines = [f"A {c} {t} stands on the {p}." for c in ("red", "blue") for t in ("cup", "dog") for p in ("mat", "bus")]
    tokenizer = train_tokenizer(lines * 5, None, 400)
    torch.manual_seed(0)
    config = load_tier(tier)
    return Ours(
        f"mmslm-{tier}", Narrator(MMSLMForConditionalGeneration(config), MMSLMProcessor.build(tokenizer, config))
    )


def others() -> list[Others]:
    """BLIP-base and SmolVLM-256M (one crop of 512 px: 64 image tokens) with random weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration, SmolVLMConfig, SmolVLMForConditionalGeneration

    blip = BlipForConditionalGeneration(BlipConfig())
    smol = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            image_token_id=49190,
            scale_factor=4,
            text_config={
                "model_type": "llama",
                "vocab_size": 49280,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "pad_token_id": 2,
            },
            vision_config={
                "image_size": 512,
                "patch_size": 16,
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
            },
        )
    )
    words = torch.full((1, 10), 100)
    smol_ids = torch.cat((torch.full((1, 64), 49190), words), dim=1)
    return [
        Others("blip-base", blip, lambda: {"pixel_values": torch.rand(1, 3, 384, 384)}),
        Others(
            "smolvlm-256m-one-crop",
            smol,
            lambda: {
                "input_ids": smol_ids,
                "attention_mask": torch.ones_like(smol_ids),
                "pixel_values": torch.rand(1, 1, 3, 512, 512),
            },
        ),
    ]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="nano")
    parser.add_argument("--model", help="a model directory, or 'base'")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--others", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    imports = peak_mb()
    cases: list[tuple[Ours | Others, float]] = []
    case: Ours | Others = ours(options.tier, options.model)
    case.caption(image)
    cases.append((case, peak_mb() - imports))
    for case in others() if options.others else []:
        case.caption(image)
        cases.append((case, peak_mb() - imports))
    speed = copy_speed()
    times: dict[str, dict[str, list[float]]] = {case.name: {} for case, _ in cases}
    for _ in range(options.repeats):
        for case, _ in cases:  # interleaved: a slow minute of the machine hits all cases
            for what in ("first", "second", "caption"):
                run = getattr(case, what)
                times[case.name].setdefault(what, []).append(cpu_seconds(lambda run=run: run(image)))
    for case, memory in cases:
        middle = {what: statistics.median(values) for what, values in times[case.name].items()}
        print(
            json.dumps(
                {
                    "case": case.name,
                    "threads": options.threads,
                    "weights_mb": round(case.weights / 1e6, 1),
                    "first_token_s": round(middle["first"], 4),
                    "second_question_s": round(middle["second"], 4),
                    "caption_s": round(middle["caption"], 4),
                    "tokens_per_s": round((TOKENS - 1) / max(middle["caption"] - middle["first"], 1e-9), 1),
                    "bandwidth_bound_tokens_per_s": round(speed / case.weights, 1),
                    "peak_over_imports_mb": round(memory, 1),
                }
            )
        )


if __name__ == "__main__":
    main()
