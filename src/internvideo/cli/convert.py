"""`internvideo convert`: convert a torch checkpoint to safetensors without executing code from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from internvideo.cli.options import Json
from internvideo.terminal import tell


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .pth, .pt, .bin or .ckpt file, a TorchScript archive; .safetensors with --set or --add."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The .safetensors file; by default beside the source.")
    ] = None,
    memory: Annotated[float, typer.Option(min=0.05, help="GB that the reading process may use.")] = 4.0,
    seconds: Annotated[int, typer.Option(min=1, help="Time limit.")] = 600,
    float32: Annotated[
        bool, typer.Option("--float32", help="Half precision to float32; otherwise types are kept.")
    ] = False,
    key: Annotated[
        str, typer.Option("--key", help="Which of several state dicts, such as model_ema; by default the model's own.")
    ] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: a setting of the model that its tensors do not tell, such as heads=6."),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option("--add", help="A .safetensors file whose tensors replace those of SOURCE: a part trained anew."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a torch checkpoint to safetensors; no code in the file is executed.

    A separate process without privileges parses it as data. A manifest with hashes and all dropped entries is written
    beside the output.
    """
    from internvideo.training.recipe_files import apply_override
    from internvideo.weights.convert import convert as convert_file
    from internvideo.weights.unpickle import AVERAGED

    overrides: dict[str, Any] = {}
    for change in changes or ():
        apply_override(overrides, change)
    found = convert_file(
        source, output, memory_gb=memory, seconds=seconds, float32=float32, key=key, overrides=overrides, add=add
    )
    types = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    lines = [f"{found.output}: {found.tensors} tensors ({types}), {found.parameters:,} numbers"]
    if found.dropped:
        shown = ", ".join(found.dropped[:8])
        lines.append(f"dropped: {shown}" + (f" and {len(found.dropped) - 8} more" if len(found.dropped) > 8 else ""))
    averaged = [name for name in found.dropped if AVERAGED.search(name.rpartition(".")[2])]
    if averaged:
        lines.append(f"averaged weights stand beside them: --key {averaged[0]} takes those")
    record = {
        "output": found.output, "tensors": found.tensors, "dtypes": dict(found.dtypes), "numbers": found.parameters,
        "dropped": list(found.dropped), "averaged": averaged, "manifest": found.manifest,
    }  # fmt: skip
    tell(record, *lines, f"manifest: {found.manifest}")
