"""The tasks of scripts/reproduce.py on folders of real sets."""

from __future__ import annotations

from reproduce_tasks import Figure, Task, demo_figures, evaluate, train

_SETS = ("{R}/sets/grid_words.jsonl", "python scripts/real_sets.py {DATA} {R}/sets")


def _real_demo(name: str, about: str, minutes: int) -> Task:
    """A demo on one manifest of `scripts/real_sets.py`."""
    folder = f"{{R}}/{name}"
    command = f"internvideo demo --data {{R}}/sets/{name}.jsonl --minutes {minutes} -o {folder}"
    return Task(
        about, ((f"{{R}}/sets/{name}.jsonl", _SETS[1]), (f"{folder}/report.json", command)), demo_figures(name, folder)
    )


_SENTENCES, _SIZES = "{R}/sets/grid_sentences.jsonl", "data.split=train"
REAL: dict[str, Task] = {
    "grid_words": _real_demo("grid_words", "51 words read from the lips of one speaker, 4,800 to learn from", 14),
    "grid_sentences": Task(
        "sentences and lips find each other; questions about what is said; words spotted in time",
        (
            _SETS,
            (
                "{R}/grid_multimodal/model.safetensors",
                f"internvideo train sample/multimodal data.train={_SENTENCES} {_SIZES} data.captions=random "
                "data.loader.alike=0 data.loader.alike_by=[] schedule.epochs=40 "
                "data.sampling.frames=16 model.overrides.vision.frames=16 -o {R}/grid_multimodal",
            ),
            evaluate("retrieval", "{R}/grid_multimodal", _SENTENCES, "grid_retrieval", "--split test"),
            (
                "{R}/grid_features/features.json",
                f"internvideo extract {_SENTENCES} -o {{R}}/grid_features "
                "-e {R}/grid_words/supervised_masked/model.safetensors "
                "--window-frames 8 --stride-frames 2 --batch-size 64",
            ),
            train("temporal_localization", "grid_spotting", "{R}/grid_features", "data.split=train"),
            evaluate(
                "temporal_localization", "{R}/grid_spotting", "{R}/grid_features", "grid_spotting_test", "--split test"
            ),
            (
                "{R}/grid_windows/temporal_localization.json",
                "python benchmarks/localization_baseline.py {R}/grid_features --fit train -o {R}/grid_windows",
            ),
        ),
        {
            "grid_retrieval": Figure(
                "{R}/grid_retrieval/retrieval.json:t2v_r1", "sentence to video, R@1 of 200", 1 / 200
            ),
            "grid_spotting": Figure(
                "{R}/grid_spotting_test/temporal_localization.json:mean_mAP",
                "words spotted: mean mAP, tIoU .3:.1:.7",
                "{R}/grid_windows/temporal_localization.json:mean_mAP",
                "windows fitted on the same features",
            ),
        },
        ("grid_words",),
    ),
    "grid_small": _real_demo("grid_small", "six digits from the lips of one speaker, 84 clips to learn from", 6),
    **{
        f"surv_fight_{fold}": _real_demo(f"surv_fight_{fold}", f"fights seen by cameras, fold {fold} of 5 by scene", 8)
        for fold in range(5)
    },
    "wlasl100": _real_demo("wlasl100", "100 words of sign language, no signer in both splits", 14),
}
"""Tasks of real sets by name; {DATA} is the folder of the sets, in the forms that scripts/real_sets.py describes."""
