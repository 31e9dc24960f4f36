"""`internvideo evaluate`: one command per task, with the options that the task reads."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import typer
from typer.main import get_command

from internvideo.cli.manners import EVALUATE_ARGUMENTS, EXAMPLES, Command, Group, write_examples
from internvideo.cli.options import Damage, FrameRate, Json, parse_integers

if TYPE_CHECKING:
    from internvideo.tasks.task import TaskSpec

Weights = Annotated[
    str, typer.Argument(help="Weights: a run, a folder of save_pretrained, a published or converted file, a URL.")
]
Rows = Annotated[
    Path, typer.Argument(help="What to test on: manifest, list file, folder of folders; features for localization.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of this run; created if absent.")]
Split = Annotated[str | None, typer.Option(help="Only rows of this split.")]


class TaskGroup(Group):
    """A group whose commands are the tasks; a command is created on demand, because that imports torch."""

    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    other_title = "Tasks"

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write examples."""
        write_examples(formatter, EXAMPLES["evaluate"])

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of all tasks."""
        from internvideo.tasks import TASKS

        return [task.name for task in TASKS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a task. Raises RecipeError: no such task."""
        from internvideo.evaluation import find_task

        return task_command(find_task(cmd_name))


def task_command(task: TaskSpec) -> Any:
    """Create the command of a task from the fields of its options."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    class TaskCommand(Command):
        """The command of a task."""

        def refuse(self, option: str) -> None:
            """Raise RecipeError for an option that only other tasks read, or that was renamed."""
            from internvideo.evaluation import refuse_option

            refuse_option(task, option)

        def examples(self) -> tuple[str, ...]:
            """Return the example of the task."""
            model = "runs/mine/model.safetensors"
            return (f"internvideo evaluate {task.name} {model} {EVALUATE_ARGUMENTS[task.name]} -o runs/mine",)

    app.command(task.name, cls=TaskCommand, context_settings={"help_option_names": ["-h", "--help"]})(
        task_function(task)
    )
    return get_command(app)


def task_function(task: TaskSpec) -> Callable[..., None]:
    """Create the function of the command of a task, with the signature from which typer reads the options."""
    fields = {field.name: field for field in dataclasses.fields(task.options)}
    types = get_type_hints(task.options, include_extras=True)

    def evaluate(**arguments: Any) -> None:
        from internvideo.evaluation import evaluate_task

        weights, manifest, output, split = (arguments.pop(name) for name in ("weights", "manifest", "output", "split"))
        options = {
            name: _convert_value(name, types[name], value) for name, value in arguments.items() if name in fields
        }
        evaluate_task(task.name, weights, manifest, output, options, split=split)

    parameters = {
        "weights": (Weights, inspect.Parameter.empty),
        "manifest": (Rows, inspect.Parameter.empty),
        "output": (Output, Path("runs/evaluate")),
        "split": (Split, None),
        "damage": (Damage, None),
        "frame_rate": (FrameRate, None),
        "as_json": (Json, False),
        **{name: _to_typer_option(types[name], field.default) for name, field in fields.items()},
    }
    type_ = inspect.Parameter.KEYWORD_ONLY
    evaluate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads the options from it
        [
            inspect.Parameter(name, type_, default=default, annotation=annotation)
            for name, (annotation, default) in parameters.items()
        ]
    )
    evaluate.__annotations__ = {name: annotation for name, (annotation, _) in parameters.items()}
    help_text = f"{task.about[:1].upper()}{task.about[1:]}."
    evaluate.__doc__ = (
        f"{help_text}\n\nPredict a table, score it, print the figures with their protocol (paper {task.section})."
    )
    return evaluate


def _to_typer_option(annotation: Any, default: Any) -> tuple[Any, Any]:
    """Convert a field of the options to (annotation, default) for typer: paths repeat, numbers are comma-separated."""
    type_, help_text = get_args(annotation)[:2]
    if get_origin(type_) is tuple:
        is_repeated = get_args(type_)[0] is Path
        return Annotated[
            list[Path] | None if is_repeated else str, typer.Option(help=help_text)
        ], None if is_repeated else ""
    nested_types = [part for part in get_args(type_) if get_origin(part) is not None]
    if nested_types:  # Literal | None, which the options check
        type_ = str | None
    return Annotated[type_, typer.Option(help=help_text)], default


def _convert_value(name: str, annotation: Any, value: Any) -> Any:
    type_ = get_args(annotation)[0]
    if get_origin(type_) is not tuple:
        return value
    return tuple(value or ()) if get_args(type_)[0] is Path else parse_integers(f"--{name.replace('_', '-')}", value)


app = typer.Typer(
    cls=TaskGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def _root() -> None:
    """Test a model on a task: predict a table, score it, and print the figures with their protocol.

    `internvideo evaluate TASK --help` shows the options of a task. The table can be scored again later.
    """
