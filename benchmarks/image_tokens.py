"""How well pictures survive as words: train the FSQ image tokenizer for a few minutes, measure on held-out scenes.

Prints one JSON line per case:

    sizes           parameters of the encoder and decoder (goal: at most 2 million each) and CPU milliseconds for one picture
                    of 256 px (goal: 50 each; median of repeats, one thread)
    reconstruction  after training on rendered public scenes: PSNR (dB) and mean absolute error (0 to 1) on scenes that were
                    not trained on, beside a floor that needs no learning and spends more (each 8 x 8 block as its mean
                    colour); the share of the 1,000 codes that occurs and their perplexity

Run: python benchmarks/image_tokens.py [--steps 800] [--save FOLDER]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmslm.data.scenes import public_photo
from mmslm.model.image_tokens import ImageTokenizer, ImageTokenizerConfig

HELD_OUT = 40_000_000  # numbered where no recipe draws


def pixels(first: int, count: int, size: int) -> Tensor:
    """Rendered scenes as [n, 1, 3, size, size] in [-1, 1]."""
    drawn = np.stack([np.asarray(public_photo(first + index).image(size)) for index in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)[:, None].float() / 127.5 - 1.0


def milliseconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Median CPU milliseconds of one call."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return round(1000 * statistics.median(times), 1)


def sizes() -> dict[str, object]:
    """Parameters and time at 256 px."""
    tokenizer = ImageTokenizer(ImageTokenizerConfig(image_size=256)).eval()
    picture = torch.rand(1, 1, 3, 256, 256) * 2 - 1
    with torch.inference_mode():
        codes = tokenizer.encode(picture)
        encode, decode = milliseconds(lambda: tokenizer.encode(picture)), milliseconds(lambda: tokenizer.decode(codes))
    first, second = tokenizer.halves()
    return {
        "case": "sizes",
        "encoder_parameters": first,
        "decoder_parameters": second,
        "codes_per_picture_256": codes.shape[1],
        "encode_256_ms": encode,
        "decode_256_ms": decode,
    }


def quality(found: Tensor, truth: Tensor) -> dict[str, float]:
    """PSNR over all pixels (dB) and mean absolute error, colours from 0 to 1."""
    difference = (found - truth) / 2
    return {
        "psnr_db": round(-10 * float(difference.pow(2).mean().log10()), 2),
        "l1": round(float(difference.abs().mean()), 4),
    }


def train(tokenizer: ImageTokenizer, pictures: Tensor, steps: int, batch: int) -> None:
    """Reconstruction, as the class offers it: one loss per sample, averaged."""
    optimiser = torch.optim.AdamW(tokenizer.parameters(), lr=2e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        tokenizer(pictures[chosen]).mean().backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()


def main() -> None:
    """Parse the command line, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--photos", type=int, default=1500)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--save", help="a folder for the trained tokenizer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(sizes()), flush=True)
    torch.manual_seed(0)
    size = ImageTokenizerConfig().image_size
    pictures, held_out = pixels(0, options.photos, size), pixels(HELD_OUT, options.held_out, size)
    tokenizer = ImageTokenizer(ImageTokenizerConfig())
    start = time.process_time()
    train(tokenizer, pictures, options.steps, options.batch)
    spent = time.process_time() - start
    tokenizer.eval()
    codes = torch.cat([tokenizer.encode(part) for part in held_out.split(50)])
    found = torch.cat([tokenizer.decode(part) for part in codes.split(50)])
    blocks = torch.nn.functional.avg_pool2d(held_out[:, 0], 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    use = tokenizer.codebook_use(codes)
    print(
        json.dumps(
            {
                "case": "reconstruction",
                "steps": options.steps,
                "training_cpu_s": round(spent, 1),
                "held_out_pictures": options.held_out,
                **quality(found, held_out),
                "floor": quality(blocks[:, None], held_out),
                "codes_used_share": round(use.share, 3),
                "codes_perplexity": round(use.perplexity, 1),
            }
        )
    )
    if options.save:
        tokenizer.save(options.save)


if __name__ == "__main__":
    main()
