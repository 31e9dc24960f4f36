"""The tasks of scripts/reproduce.py: what each needs, its commands with the file that each writes, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One row of the results.

    Attributes:
        value: FILE:KEY of the figure in a result file; {R} is the output folder.
        about: in words. baseline: a number, or FILE:KEY; beside: what it is.
        interval: FILE:KEY where it is not beside the figure.
        unit: "share" is shown in per cent. lower_is_better: of distances.
    """

    value: str
    about: str
    baseline: float | str | None = None
    beside: str = "chance"
    interval: str = ""
    unit: str = "share"
    lower_is_better: bool = False


@dataclass(frozen=True)
class Task:
    """Commands, each with the file that tells that it is done, and figures by name."""

    about: str
    commands: tuple[tuple[str, str], ...]
    figures: Mapping[str, Figure]
    needs: tuple[str, ...] = field(default=())


def train(recipe: str, name: str, manifest: str, *more: str) -> tuple[str, str]:
    """The command that trains a sample recipe, and the weights that it writes."""
    weights = f"{{R}}/{name}/model.safetensors"
    return weights, " ".join(
        ["internvideo train", f"sample/{recipe}", f"data.train={manifest}", *more, f"-o {{R}}/{name}"]
    )


def evaluate(task: str, weights: str, manifest: str, name: str, *more: str) -> tuple[str, str]:
    """The command that evaluates weights, and the figures that it writes."""
    return f"{{R}}/{name}/{task}.json", " ".join(
        ["internvideo evaluate", task, f"{weights}/model.safetensors", manifest, *more, f"-o {{R}}/{name}"]
    )


D, W, LONG, EGO = "{R}/demo", "{R}/demo/world", "{R}/long", "{R}/ego_world/ego"
STAGE2, MASKED = "{R}/stage2", f"{D}/supervised_masked"
_FROM2 = f"init.weights={STAGE2}/model.safetensors"
_FROM3 = f"init.weights={MASKED}/model.safetensors"


def _demo(row: str, text: str, other: str, beside: str, folder: str = "{R}/demo") -> Figure:
    """A row of a demo's ablation beside another one."""
    place = f"{folder}/report.json:ablation"
    baseline = f"{place}/name={other}/top1"
    return Figure(f"{place}/name={row}/top1", text, baseline, beside, f"{place}/name={row}/interval")


def _gain(name: str, text: str, folder: str = "{R}/demo") -> Figure:
    """A paired difference of a demo's rows."""
    place = f"{folder}/report.json:differences/{name}"
    return Figure(f"{place}/top1", text, 0.0, "no difference", f"{place}/interval")


def demo_figures(name: str, folder: str = "{R}/demo") -> dict[str, Figure]:
    """All rows of a demo, and its paired differences."""
    return {
        f"{name}_ridge": _demo("ridge", "ridge on 16 x 16 gray pixels", "chance", "chance", folder),
        f"{name}_scratch": _demo("masked_scratch", "masked encoder, no pretraining", "ridge", "ridge", folder),
        f"{name}_masked": _demo("masked", "masked encoder, pretrained", "masked_scratch", "no pretraining", folder),
        f"{name}_multimodal": _demo("multimodal", "multimodal encoder", "single_frame", "one frame", folder),
        f"{name}_ensemble": _demo("ensemble", "plain score ensemble", "masked", "masked encoder", folder),
        name: _demo("interaction", "cross-model interaction", "ensemble", "ensemble", folder),
        f"{name}_masked_over_ridge": _gain("ridge", "masked encoder minus ridge, paired over clips", folder),
        f"{name}_pretraining_gain": _gain("pretraining", "pretrained minus scratch, paired", folder),
        f"{name}_interaction_gain": _gain("interaction", "interaction minus ensemble, paired", folder),
    }


WORLD: dict[str, Task] = {
    "recognition": Task(
        "the demo: four stages, recognition of 28 actions",
        ((f"{D}/report.json", f"internvideo demo -o {D}"),),
        demo_figures("recognition"),
    ),
    "zero_shot": Task(
        "recognition from class names; the demo's stage 2 goes on to 48 epochs, for this and the tasks that rest on it",
        (
            ("{R}/stage2/run.json", f"cp -r {D}/multimodal_pretrained {{R}}/stage2"),
            (
                "{R}/stage2/checkpoints/step-00002160.safetensors",
                "internvideo train {R}/stage2/recipe.json schedule.epochs=48 -o {R}/stage2",
            ),
            evaluate("zero_shot", STAGE2, f"{W}/test.jsonl", "zero_shot_28"),
            evaluate("zero_shot", STAGE2, f"{W}/zero_shot.jsonl", "zero_shot_8"),
        ),
        {
            "zero_shot_28": Figure("{R}/zero_shot_28/zero_shot.json:top1", "top-1 of the 28 classes, stage 2", 1 / 28),
            "zero_shot_unseen": Figure("{R}/zero_shot_8/zero_shot.json:top1", "top-1 of 8 unseen classes", 1 / 8),
        },
        ("recognition",),
    ),
    "multiple_choice": Task(
        "one of five sentences, zero-shot and trained",
        (
            evaluate("multiple_choice", STAGE2, f"{W}/test.jsonl", "choice_zero_shot"),
            train("multiple_choice", "choice", f"{W}/train.jsonl", _FROM2),
            evaluate("multiple_choice", "{R}/choice", f"{W}/test.jsonl", "choice_trained"),
        ),
        {
            "choice_zero_shot": Figure(
                "{R}/choice_zero_shot/multiple_choice.json:accuracy", "zero-shot multiple choice of 5", 0.2
            ),
            "choice_trained": Figure(
                "{R}/choice_trained/multiple_choice.json:accuracy", "trained multiple choice", 0.2
            ),
        }
        | {
            f"choice_{name}_{kind}": Figure(
                f"{{R}}/choice_{name}/multiple_choice.json:against_{kind}",
                f"{name.replace('_', '-')}, against {kind.replace('_', ' ')}",
                0.5,
            )
            for name in ("zero_shot", "trained")
            for kind in ("reversed_action", "other_action", "other_shape", "other_colour_and_place")
        },
        ("zero_shot",),
    ),
    "retrieval": Task(
        "sentences and clips find each other among 840",
        (
            evaluate(
                "retrieval",
                STAGE2,
                f"{W}/test.jsonl",
                "retrieval_zero_shot",
                "--agreement shape,action --within colour,place",
            ),
            train("retrieval", "retrieval", f"{W}/train.jsonl", _FROM2),
            evaluate(
                "retrieval",
                "{R}/retrieval",
                f"{W}/test.jsonl",
                "retrieval_tuned",
                "--agreement shape,action --within colour,place",
            ),
        ),
        {
            f"retrieval_{name}_{key}": Figure(
                f"{{R}}/retrieval_{name}/retrieval.json:{key}", f"{name.replace('_', '-')}: {about}", base
            )
            for name in ("zero_shot", "tuned")
            for key, about, base in (
                ("t2v_r1", "R@1 text to video", 1 / 840),
                ("v2t_r1", "R@1 video to text", 1 / 840),
                (
                    "t2v_shape",
                    "shape of the first clip of this colour and place",
                    f"{{R}}/retrieval_{name}/retrieval.json:t2v_shape_chance",
                ),
                (
                    "t2v_action",
                    "action of the first clip of this colour and place",
                    f"{{R}}/retrieval_{name}/retrieval.json:t2v_action_chance",
                ),
            )
        },
        ("zero_shot",),
    ),
    "captioning": Task(
        "a sentence for a clip",
        (
            train("captioning", "captioning", f"{W}/train.jsonl", _FROM2),
            evaluate("captioning", "{R}/captioning", f"{W}/test.jsonl", "captioning_test", "--num-beams 4"),
            (
                "{R}/captioning_test/facts.json",
                f"python scripts/caption_facts.py {{R}}/captioning_test/captioning.npz {W}/test.jsonl "
                "-o {R}/captioning_test/facts.json",
            ),
        ),
        {
            "captioning": Figure(
                "{R}/captioning_test/captioning.json:cider",
                "CIDEr",
                "{R}/captioning_test/captioning.json:cider_one_for_all",
                "one sentence for all",
            )
        }
        | {
            f"captioning_{fact}": Figure(
                f"{{R}}/captioning_test/facts.json:{fact}", f"{fact} told rightly", 3 * chance, "three times chance"
            )
            for fact, chance in (("colour", 1 / 8), ("shape", 1 / 8), ("place", 1 / 8), ("action", 1 / 28))
        },
        ("zero_shot",),
    ),
    "answering": Task(
        "questions about clips",
        (
            train("question_answering", "answering", f"{W}/train.jsonl", _FROM2),
            evaluate("question_answering", "{R}/answering", f"{W}/test.jsonl", "answering_test"),
        ),
        {
            "answering": Figure(
                "{R}/answering_test/question_answering.json:accuracy",
                "accuracy of all questions",
                "{R}/answering_test/question_answering.json:accuracy_commonest",
                "commonest answer",
            ),
            "answering_action": Figure(
                "{R}/answering_test/question_answering.json:accuracy_action", "questions for the action", 1 / 28
            ),
        },
        ("zero_shot",),
    ),
    "spatio_temporal": Task(
        "actions of actors in boxes, in untrimmed videos",
        (
            (
                f"{LONG}/long.jsonl",
                "python scripts/long_world.py {R}/long",
            ),
            train("spatio_temporal_localization", "spatio_temporal", f"{LONG}/long.jsonl", _FROM3),
            evaluate(
                "spatio_temporal_localization", "{R}/spatio_temporal", f"{LONG}/long.jsonl", "boxes", "--split test"
            ),
            (
                "{R}/boxes/baselines.json",
                "python benchmarks/region_baseline.py {R}/boxes/spatio_temporal_localization.npz "
                f"{LONG}/long.jsonl {MASKED}/model.safetensors --split test -o {{R}}/boxes/baselines.json",
            ),
        ),
        {
            "spatio_temporal": Figure(
                "{R}/boxes/spatio_temporal_localization.json:frame_mAP@0.5",
                "frame mAP at IoU .5",
                "{R}/boxes/baselines.json:own clip",
                "stage-3 classifier on the same boxes",
            )
        },
        ("recognition",),
    ),
    "localization": Task(
        "actions in time, in untrimmed videos",
        (
            (
                "{R}/features/index.json",
                f"internvideo extract {LONG}/long.jsonl -o {{R}}/features -e {{R}}/spatio_temporal/model.safetensors "
                "--window-frames 24 --stride-frames 4 --tiles 3 --batch-size 32",
            ),
            train("temporal_localization", "localization", "{R}/features", "model.overrides.input_width=576"),
            evaluate("temporal_localization", "{R}/localization", "{R}/features", "localization_test", "--split test"),
            (
                "{R}/fitted_windows/temporal_localization.json",
                "python benchmarks/localization_baseline.py {R}/features --fit train -o {R}/fitted_windows",
            ),
        ),
        {
            "localization": Figure(
                "{R}/localization_test/temporal_localization.json:mean_mAP",
                "mean mAP, tIoU .3:.1:.7",
                "{R}/fitted_windows/temporal_localization.json:mean_mAP",
                "windows fitted on the same features",
            )
        },
        ("spatio_temporal",),
    ),
    "language_queries": Task(
        "when did it happen: spans of untrimmed videos from sentences",
        (
            train(
                "grounding",
                "grounding",
                f"{LONG}/queries.jsonl",
                "data.queries.features={R}/features",
                "model.overrides.input_width=576",
            ),
            evaluate("grounding", "{R}/grounding", f"{LONG}/queries.jsonl", "grounding_test", "--split test"),
        ),
        {
            "language_queries": Figure(
                "{R}/grounding_test/grounding.json:R1@0.5",
                "R@1 at tIoU .5",
                "{R}/grounding_test/grounding.json:R1@0.5_prior",
                "prior spans",
            )
        },
        ("localization",),
    ),
    "moments": Task(
        "Ego4D moments: 8 levels",
        (
            train(
                "temporal_localization",
                "moments",
                "{R}/features",
                "model.overrides.input_width=576",
                "settings.tiou_thresholds=[0.1,0.2,0.3,0.4,0.5] settings.recall_protocol=moments",
            ),
            evaluate("temporal_localization", "{R}/moments", "{R}/features", "moments_test", "--split test"),
            (
                "{R}/moments_windows/temporal_localization.json",
                "python benchmarks/localization_baseline.py {R}/features --fit train --tiou 0.1 0.2 0.3 0.4 0.5 "
                "-o {R}/moments_windows",
            ),
        ),
        {
            "moments": Figure(
                "{R}/moments_test/temporal_localization.json:mean_mAP",
                "average mAP, tIoU .1:.1:.5",
                "{R}/moments_windows/temporal_localization.json:mean_mAP",
                "windows fitted on the same features",
            )
        },
        ("localization",),
    ),
    "open_set": Task(
        "known or unknown",
        (
            train("open_set", "open_set", f"{W}/train.jsonl", _FROM3),
            evaluate("open_set", "{R}/open_set", f"{W}/open_set.jsonl", "open_set_test"),
        ),
        {
            f"open_set{kind}": Figure(
                f"{{R}}/open_set_test/open_set.json:model.auroc{kind}",
                f"AUC of evidence, {about} unknowns",
                f"{{R}}/open_set_test/open_set.json:softmax.auroc{kind}",
                "SoftMax",
            )
            for kind, about in (("", "all"), ("_far", "far"), ("_near", "near"))
        },
        ("recognition",),
    ),
    "ego4d": Task(
        "Ego4D: future hands and nouns",
        (
            (f"{EGO}/hands.jsonl", "internvideo sample-world {R}/ego_world --clips 28 --reaches 800"),
            train(
                "future_hands",
                "hands",
                f"{EGO}/hands.jsonl",
                f"init.weights={D}/supervised_multimodal/model.safetensors",
            ),
            evaluate("future_hands", "{R}/hands", f"{EGO}/hands.jsonl", "hands_test", "--split test"),
            train("verb_noun", "verb_noun", f"{EGO}/actions.jsonl", _FROM3),
            evaluate("verb_noun", "{R}/verb_noun", f"{EGO}/actions.jsonl", "verb_noun_test", "--split test"),
        ),
        {
            f"hands_{side}": Figure(
                f"{{R}}/hands_test/future_hands.json:{side}_mean_px",
                f"displacement of the {side} hand",
                f"{{R}}/hands_test/future_hands.json:{side}_mean_px_constant_velocity",
                "constant velocity",
                "",
                "px",
                True,
            )
            for side in ("left", "right")
        }
        | {"nouns": Figure("{R}/verb_noun_test/verb_noun.json:noun_top1", "top-1 of nouns", 1 / 8)},
        ("recognition",),
    ),
}
"""Tasks of the sample world by name, in the order in which they are run."""
