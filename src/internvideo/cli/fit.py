"""`internvideo fit`: train a classifier for your own classes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Damage, Device, Encoder, FrameRate, Json, Precision, Weights, open_model
from internvideo.terminal import LOGGER, tell


def fit(
    source: Annotated[
        Path, typer.Argument(help="A folder with one folder of videos per class, or a manifest with labels.")
    ],
    encoder: Encoder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of this fit; created if absent.")] = Path(
        "runs/fit"
    ),
    weights: Weights = None,
    head: Annotated[
        str, typer.Option(help="linear (quick) or attentive (attention pooling of the tokens; takes longer).")
    ] = "linear",
    folds: Annotated[int, typer.Option(help="Number of cross-validation folds.")] = 5,
    group_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression for the group in a path, such as '(.+)_part': folds split no group."),
    ] = None,
    accept_known: Annotated[
        float, typer.Option(help="Fraction of videos of known classes that must not be rejected as unknown.")
    ] = 0.95,
    splits: Annotated[
        bool, typer.Option("--splits/--no-splits", help="Evaluate on the test rows of the manifest, if it has any.")
    ] = True,
    features: Annotated[
        Path | None, typer.Option(help="Folder of computed features, to share; by default in the output.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per batch.")] = 8,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes; by default a few.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="One seed gives the same splits and the same classifier.")] = 0,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
    as_json: Json = False,
) -> None:
    """Train a classifier for your own classes on the features of a model, in minutes.

    Features are computed once and cached. Cross-validation never splits a group; probabilities are calibrated, and
    videos unlike all of your classes are classified as "unknown".
    """
    import torch

    from internvideo.extras import require
    from internvideo.probing import fit as fitting

    require("fit", "internvideo fit")
    settings = fitting.FitSettings(
        head=head,  # type: ignore[arg-type]  # checked there
        folds=folds, group_pattern=group_pattern, accept_known=accept_known, use_splits=splits, seed=seed,
        batch_size=batch_size, workers=workers,
    )  # fmt: skip
    fitting.read_labeled_manifest(source, settings)  # before a large model is opened
    torch.manual_seed(seed)  # of an untrained model
    model = open_model(encoder, weights, device, precision)
    if model.metadata.get("trained") == "no":
        LOGGER.warning("the model is untrained; its features say little")
    fitted = fitting.fit(source, model, output, settings, features=features)
    encoder_options = ["--encoder", encoder, *([] if weights is None else ["--weights", weights])]
    command = f"internvideo classify FILE {shlex.join([*encoder_options, '--model', str(fitted.file)])}"
    tell({"classifier": fitted.file, **fitted.result}, f"classifier: {fitted.file}", f"use it: {command}")
