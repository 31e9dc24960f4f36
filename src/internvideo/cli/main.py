"""The command line: the commands demo, sample-world, train, score and list, and the list of all others."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from internvideo import __version__
from internvideo.cli.ask import ask
from internvideo.cli.caption import caption
from internvideo.cli.classify import classify
from internvideo.cli.compare import compare
from internvideo.cli.convert import convert
from internvideo.cli.doctor import doctor
from internvideo.cli.embed import embed
from internvideo.cli.ensemble import ensemble
from internvideo.cli.evaluate import app as evaluate
from internvideo.cli.export import export
from internvideo.cli.extract import extract
from internvideo.cli.fit import fit
from internvideo.cli.index import index
from internvideo.cli.localize import localize
from internvideo.cli.manners import Command, Group
from internvideo.cli.mix import mix
from internvideo.cli.navigation_world import navigation_world
from internvideo.cli.options import Damage, FrameRate, Json, named_files, refuse_together, refuse_unused
from internvideo.cli.persons import persons
from internvideo.cli.prepare import pack, prepare
from internvideo.cli.search import search, serve
from internvideo.cli.stream import stream
from internvideo.errors import InternVideoError
from internvideo.terminal import LOGGER, print_rows, results_as_json, say, set_verbosity, tell

app = typer.Typer(
    name="internvideo",
    cls=Group,
    help="General video foundation models: pretrain, combine two encoders, evaluate. Start with `internvideo demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of this run; created if absent.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes to use; by default one per core.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no notes, only errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More notes, and tracebacks of errors.")] = False,
) -> None:
    if version:
        say(f"internvideo {__version__}")
        raise typer.Exit
    results_as_json(False)
    refuse_together(quiet=quiet or None, verbose=verbose or None)
    set_verbosity(quiet=quiet, verbose=verbose)


@app.command(cls=Command)
def demo(
    context: typer.Context,
    output: Output = Path("runs/demo"),
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled videos of your own: a manifest (.jsonl, .csv, list file) or a folder of folders."),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="full (RESULTS.md tells how long it took) or short (a quick check that all steps run).")
    ] = "full",
    label: Annotated[str, typer.Option(help="With --data: the column that holds the class.")] = "label",
    video: Annotated[str, typer.Option(help="With --data: the column that holds the path.")] = "path",
    split: Annotated[str, typer.Option(help="With --data: the column that holds train/test.")] = "split",
    seed: Annotated[int, typer.Option(help="Seed of the world, the models and the batches.")] = 0,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="With --data: duration of the whole run, from which the steps follow.")
    ] = 15.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on real video files and write a report.

    Masked pretraining, video-language pretraining, supervised post-pretraining and cross-model interaction run one
    after the other. Interrupt it at any time: the same command resumes.
    """
    from internvideo.apps.demo import Columns, run_demo

    if data is None:
        refuse_unused(context, "--data", "label", "video", "split", "minutes")
    columns = Columns(label, video, split)
    report = run_demo(output, data=data, profile=profile, columns=columns, seed=seed, device=device, minutes=minutes)
    tell({"report": report}, f"report: {report}")


@app.command("sample-world", cls=Command)
def sample_world(
    folder: Annotated[Path, typer.Argument(help="Where to write the videos and manifests.")],
    clips: Annotated[int, typer.Option(min=1, help="Number of short clips.")] = 2000,
    seed: Annotated[int, typer.Option(help="One seed gives identical files on one kind of CPU.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of the square frames in pixels.")] = 96,
    difficulty: Annotated[float, typer.Option(min=0.0, max=1.0, help="Shake, occlusion, noise, distractors.")] = 0.25,
    workers: Workers = None,
    reaches: Annotated[
        int, typer.Option(min=0, help="Clips of hands that reach for objects, below FOLDER/ego, for Ego4D's tasks.")
    ] = 0,
    pictures: Annotated[
        int, typer.Option(min=0, help="Captioned pictures of the world's objects, in FOLDER/pictures.jsonl.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Write small real video files with exactly known answers, for learning, testing and teaching."""
    from internvideo.sample_world.generate import WorldSettings, generate

    settings = WorldSettings(clips=clips, seed=seed, size=size, difficulty=difficulty)
    files = generate(folder, settings, workers=workers)
    if pictures:
        from internvideo.sample_world.pictures import generate_pictures

        files |= generate_pictures(folder, settings, pictures, workers=workers)
    if reaches:
        from internvideo.sample_world.ego4d import generate_reaches

        files |= generate_reaches(folder, settings, reaches, workers=workers)
    tell(files, *(f"{name}: {path}" for name, path in files.items()))


@app.command(cls=Command)
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file or the name of a shipped one: `internvideo list recipes`.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: key.key=value ...")] = None,
    output: Output = Path("runs/train"),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show parameters, steps, memory and one forward and backward; train nothing."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="With --dry-run: processes of the run, for loop.parallel=fsdp and steps per epoch."),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(min=0.01, help="With --dry-run: memory per GPU; lists what makes the run fit."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE: resume with another value than the run began with, such as optimizer.base_lr=1e-4, and "
            "log the change. A longer schedule does not need it."
        ),
    ] = None,
    device: Device = "auto",
    damage: Damage = None,
    frame_rate: FrameRate = None,
    as_json: Json = False,
) -> None:
    """Train one stage from a recipe. An interrupted run resumes; torchrun runs it on many devices."""
    from internvideo.apps.dry_run import describe
    from internvideo.errors import RecipeError
    from internvideo.pipeline import run_recipe
    from internvideo.recipe import read_recipe

    changes = change or []
    loaded = read_recipe(recipe, [*(overrides or []), *changes])
    if dry_run:
        plan = describe(loaded, device=device, processes=processes or 1, memory_gib=memory_gib)
        for line in plan.splitlines():
            tell({"plan": line}, line)
        return
    if (processes, memory_gib) != (None, None):
        raise RecipeError("--processes, --memory-gib", "without --dry-run", "", "torchrun starts several processes")
    result = run_recipe(loaded, output, device=device, changes=[text.partition("=")[0] for text in changes])
    tell({"weights": result}, f"weights: {result}")


@app.command(cls=Command)
def score(
    tables: Annotated[
        list[Path],
        typer.Argument(
            help="A table written by `internvideo evaluate`; several of different splits give their mean; - reads "
            "names from standard input. Or results in AVA's format, .csv."
        ),
    ],
    truth: Annotated[Path | None, typer.Option(help="For a .csv: AVA's annotations, such as ava_val_v2.2.csv.")] = None,
    labels: Annotated[Path | None, typer.Option(help="For a .csv: AVA's label map of the scored classes.")] = None,
    excluded: Annotated[Path | None, typer.Option(help="For a .csv: AVA's timestamps that are not scored.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the metrics.")] = None,
    as_json: Json = False,
) -> None:
    """Recompute the metrics of a saved table, without model or videos; or of a results file in AVA's format.

    Of several tables of different splits of a data set print each and the mean, as is standard for HMDB51.
    """
    from internvideo.errors import RunError
    from internvideo.evaluation import score_results, score_table, score_tables
    from internvideo.tasks.table import save_result

    tables = [Path(name) for name in named_files(tables)]
    if len(tables) == 1 and tables[0].suffix == ".csv":
        result = score_results(tables[0], truth, labels, excluded)
    elif (truth, labels, excluded) != (None, None, None):
        raise RunError(tables[0], "--truth, --labels and --excluded with no single .csv", "one results file")
    else:
        result = score_table(tables[0]) if len(tables) == 1 else score_tables(tables)
    if output is not None:
        save_result(result, output)


@app.command("list", cls=Command)
def list_(
    what: Annotated[str, typer.Argument(help="models, stages, tasks, recipes or benchmarks.")], as_json: Json = False
) -> None:
    """List the available models, stages, tasks, recipes or benchmarks, one per line (wrapped in a terminal)."""
    from internvideo.pipeline import listing

    print_rows(listing(what))


app.add_typer(evaluate, name="evaluate")

COMMANDS: tuple[Callable[..., None], ...] = (embed, index, search, serve, classify, caption, ask, compare, stream, fit)
COMMANDS += (prepare, pack, extract, localize, persons, navigation_world, ensemble, mix, export, convert, doctor)
for command in COMMANDS:
    app.command(cls=Command)(command)


RESUMED = {"demo", "train", "embed", "index", "extract", "fit"}
"""Commands of which the message on Ctrl-C says that they resume; `pack`, and others with some options, resume too."""
INTERRUPTED = 130
"""The exit code for Ctrl-C, as in typer."""


def main() -> None:
    """Run the command line; an error that the user can fix is one line on stderr and exit code 2, no traceback."""
    # Before torch is imported: spinning idle threads make small steps three times slower on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names that are not UTF-8, as the error stream has them
    try:
        result = app(standalone_mode=False, prog_name="internvideo")
    except InternVideoError as error:
        LOGGER.debug("raised here:", exc_info=error)
        say(f"internvideo: {error}", err=True)
        sys.exit(2)
    except typer.TyperException as error:  # a wrong command, option or argument; or none, with the help as message
        message = error.format_message()
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "internvideo"
        if not message.startswith("Usage:"):
            message = f"internvideo: {' '.join(message.split()).rstrip('.')}; see `{command} --help`"
        say(message, err=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        result = INTERRUPTED
    finally:
        results_as_json(False)
    if result == INTERRUPTED:
        resume_hint = "; the same command resumes" if RESUMED & set(sys.argv[1:2]) else ""
        say(f"internvideo: interrupted{resume_hint}", err=True)
    sys.exit(result if isinstance(result, int) else 0)
