"""Write a small world of videos, train the masked encoder on its actions, test it on the held-out clips."""

from pathlib import Path

from internvideo import WorldSettings, generate, read_recipe, run_recipe
from internvideo.evaluation import evaluate_task

if __name__ == "__main__":
    world = generate(Path("runs/world"), WorldSettings(clips=200))
    changes = [f"data.train={world['train']}", "schedule.epochs=2", "schedule.warmup=1"]
    weights = run_recipe(read_recipe("sample/supervised_masked", changes), Path("runs/first"))
    evaluate_task("recognition", weights, world["test"], Path("runs/first"))
