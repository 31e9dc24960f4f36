"""Does `--rerank` help? R@1 and R@5 of texts whose video is in a collection, in the order of cosines and reranked.

    python benchmarks/rerank.py COLLECTION MANIFEST [--count 20] [--queries 400]

COLLECTION is of `internvideo index MANIFEST` with a model that writes captions; the text is each video's first caption.
Both orders have the same moments, the COUNT best of `Collection.search`; intervals of 95 % draw queries.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.data.manifest import read_manifest
from internvideo.data.preprocessing import Span
from internvideo.search.collection import Collection
from internvideo.search.reranking import caption_likelihood


def interval(values: NDArray[np.floating]) -> str:
    """Percent of (n,) values, and its interval."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return f"{100 * values.mean():5.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--queries", type=int, default=400)
    given = parser.parse_args()
    manifest = read_manifest(given.manifest)
    chosen = np.random.default_rng(0).permutation(len(manifest.rows))[: given.queries]
    rows = [manifest.rows[index] for index in chosen]
    places: dict[str, list[int]] = {"cosine": [], "reranked": []}
    with Collection.open(given.collection) as collection:
        model = collection.model

        @cache
        def clip(path: str, start: float, end: float) -> torch.Tensor:
            return next(iter(model.read(Span(path, start, end))))

        answers = collection.search_many([row.captions[0] for row in rows], top=given.count)
        for row, answer in zip(rows, answers, strict=True):
            right = np.array([one.path == str(manifest.video_path(row).resolve()) for one in answer.moments])
            clips = torch.cat([clip(one.path, one.start, one.end) for one in answer.moments])
            likelihoods = caption_likelihood(model, clips, row.captions[0]).numpy()
            for name, order in (
                ("cosine", np.arange(len(right))),
                ("reranked", np.argsort(-likelihoods, kind="stable")),
            ):
                places[name].append(int(right[order].argmax()) if right.any() else given.count)
    ranks = {name: np.array(found) for name, found in places.items()}
    found = 100 * (ranks["cosine"] < given.count).mean()
    print(f"{len(rows)} queries, {found:.1f} % have their video among {given.count}")
    for level in (1, 5):
        hits = {name: (found < level).astype(float) for name, found in ranks.items()}
        for name, values in hits.items():
            print(f"R@{level} {name:9s} {interval(values)}")
        print(f"R@{level} gain      {interval(hits['reranked'] - hits['cosine'])}")


if __name__ == "__main__":
    main()
