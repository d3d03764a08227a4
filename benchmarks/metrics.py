"""How fast and how exact our caption metrics are: `python benchmarks/metrics.py [folder of shared data]`.

Prints for each set of stored official scores the largest difference (corpus and per image), the share of captions
that our tokeniser cuts as the Java original did, and the time for the 5,000 photos of COCO val2017 (one human caption
against the other four). Needs the metric fixtures and the COCO captions; says which is absent.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmslm.evaluation.captions import bleu, cider, rouge_l, score_captions
from mmslm.evaluation.tokens import tokenise

SETS = ("edge_cases", "human_loo_500", "tylin_fakecap_126", "degenerate_200")


def parity(folder: Path) -> None:
    """Largest differences to the stored scores, and how many captions are tokenised alike."""
    print(f"{'set':20} {'captions':>8} {'corpus':>9} {'per image':>9} {'own tokens':>10} {'tokenised alike':>16}")
    for name in SETS:
        data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        items = data["items"]
        theirs = score_captions(
            [item["tokenized_hypothesis"] for item in items],
            [item["tokenized_references"] for item in items],
            tokenised=True,
        )
        ours = score_captions([item["hypothesis"] for item in items], [item["references"] for item in items])
        corpus = max(abs(value - data["expected"][key]) for key, value in theirs.as_dict().items())
        own = max(abs(value - data["expected"][key]) for key, value in ours.as_dict().items())
        images = max(
            float(np.abs(values - [item["per_image"][key] for item in items]).max())
            for key, values in theirs.per_image.items()
        )
        pairs = [pair for item in items for pair in _texts(item)]
        alike = sum(" ".join(tokenise(text)) == tokens for text, tokens in pairs)
        print(f"{name:20} {len(pairs):8,} {corpus:9.1e} {images:9.1e} {own:10.1e} {alike:8,} of {len(pairs):,}")


def speed(path: Path) -> None:
    """Processor seconds of each step on COCO val2017."""
    captions: dict[int, list[str]] = {}
    for annotation in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    start = time.process_time()
    tokens = [[tokenise(text) for text in texts] for texts in captions.values()]
    print(f"{'tokenise':10} {time.process_time() - start:6.2f} s for {sum(map(len, tokens)):,} captions")
    hyps, refs = [texts[0] for texts in tokens], [texts[1:] for texts in tokens]
    for name, run in (("BLEU", bleu), ("ROUGE-L", rouge_l), ("CIDEr", cider)):
        start = time.process_time()
        run(hyps, refs)
        print(f"{name:10} {time.process_time() - start:6.2f} s for {len(hyps):,} captions")


def _texts(item: dict[str, Any]) -> list[tuple[str, str]]:
    references = list(zip(item["references"], item["tokenized_references"], strict=True))
    return [(item["hypothesis"], item["tokenized_hypothesis"]), *references]


def main() -> int:
    """Runs what there is data for; the exit code is 1 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=Path(__file__).parents[1] / "../shared/data")
    folder = parser.parse_args().data
    found = False
    fixtures, coco = folder / "metric_fixtures", folder / "coco_val2017_captions" / "captions_val2017.json"
    if fixtures.is_dir():
        parity(fixtures)
        found = True
    else:
        print(f"no metric fixtures at {fixtures}: parity was not checked")
    if coco.is_file():
        speed(coco)
        found = True
    else:
        print(f"no COCO captions at {coco}: speed was not measured")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
