"""`internvideo ask`: answer questions about a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Damage, Device, FrameRate, Json, Precision, Weights, open_model
from internvideo.terminal import tell


def ask(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    questions: Annotated[list[str], typer.Argument(help='One or several: "what is the man doing?"')],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A network with an answer head: a run of the stage question_answering, a "
            "folder, hf://ORGANISATION/REPOSITORY, or a name of `internvideo list models` with --weights.",
        ),
    ],
    weights: Weights = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="The answers of published weights: answer_set.txt, one per line, or ans2label.json."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of answers, the most probable first.")] = 5,
    as_json: Json = False,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    precision: Precision = "float32",
) -> None:
    """Answer questions about a video, with probabilities. The video is read once for all questions."""
    from internvideo.apps.ask import Answerer

    answerer = Answerer(open_model(model, weights, device, precision), answers)
    for question, probabilities in zip(questions, answerer(video, questions, top=top), strict=True):
        record = {"path": str(video), "question": question, "answers": probabilities}
        tell(record, f"{question} {', '.join(f'{answer} {p:.3f}' for answer, p in probabilities.items())}")
