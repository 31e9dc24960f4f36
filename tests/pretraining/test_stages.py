"""The stages: the contract over the table STAGES, and each one learns a small sample world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import small_navigation
import small_world
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from small_world import CLASSES, batch, learn
from torch import nn

from internvideo.data.batch import Batch, FeatureBatch, HandBatch, ProposalBatch, QueryBatch, RegionBatch
from internvideo.models.cross_model import CrossModel
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.objectives.masking import MaskKind
from internvideo.pretraining.interaction import InteractionSettings, InteractionStage
from internvideo.pretraining.masked import MaskedSettings, MaskedStage
from internvideo.pretraining.multimodal import MultimodalSettings, MultimodalStage
from internvideo.pretraining.supervised import SupervisedSettings, SupervisedStage
from internvideo.tasks import STAGES
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.grounding.model import Grounder, GrounderConfig
from internvideo.tasks.navigation.world.batch import NavigationBatch, PanoramaBatch
from internvideo.tasks.refinement.model import TCANet, TCANetConfig
from internvideo.tasks.spatio_temporal_localization.model import ActionDetector
from internvideo.tasks.temporal_localization.config import ActionFormerConfig
from internvideo.tasks.temporal_localization.model import ActionFormer


def detector() -> ActionFormer:
    torch.manual_seed(0)
    ranges = ((0.0, 4.0), (4.0, 10000.0))
    return ActionFormer(
        ActionFormerConfig(6, 8, 2, (3,), 16, 3, stem_layers=1, branch_layers=1, ranges=ranges, drop_path=0.0)
    )


def refiner() -> TCANet:
    torch.manual_seed(0)
    return TCANet(TCANetConfig(8, 8, 2, feed_forward=8, window=3, dropout=0.0, thresholds=(0.3, 0.3, 0.3)))


def grounder() -> Grounder:
    torch.manual_seed(0)
    return Grounder(GrounderConfig(6, 9, 8, 2, kernel=3, max_length=16, max_words=8, dropout=0.0))


def region_detector() -> ActionDetector:
    torch.manual_seed(0)
    return ActionDetector(replace(small_world.MASKED, num_classes=3))


def anticipator() -> Anticipator:
    torch.manual_seed(0)
    return Anticipator(replace(small_world.MASKED, num_classes=3))


def hand_encoder() -> VideoMAEClassifier:
    torch.manual_seed(0)
    return VideoMAEClassifier(replace(small_world.MASKED, num_classes=20))


def hand_multimodal_encoder() -> UniFormerV2:
    torch.manual_seed(0)
    return UniFormerV2(replace(small_world.VISION, num_classes=20))


def masked_of_words() -> VideoMAEClassifier:
    torch.manual_seed(0)
    return VideoMAEClassifier(replace(small_world.MASKED, num_classes=3))


def multimodal_of_words() -> UniFormerV2:
    torch.manual_seed(0)
    return UniFormerV2(replace(small_world.VISION, num_classes=3))


def inputs(name: str, count: int) -> Batch | FeatureBatch | NavigationBatch | PanoramaBatch:
    """What a stage learns from: clips, sequences of features with an action at both ends, episodes, panoramas."""
    if name == "navigation":
        return small_navigation.episode_batch(count)
    if name == "waypoints":
        return small_navigation.panorama_batch(count)
    if name in ("spatio_temporal_localization", "anticipation"):
        clips = batch(count)
        boxes = torch.tensor([[1.0, 2.0, 20.0, 30.0]]).repeat(count, 1)
        targets = torch.tensor([[1.0, 0.4] if name == "anticipation" else [1.0, 0.0, 1.0]]).repeat(count, 1)
        return RegionBatch(clips.video, clips.ids, clip_index=torch.arange(count), boxes=boxes, targets=targets)
    if name == "verb_noun":  # one verb, two nouns; half of the clips have no noun
        words = torch.stack([torch.zeros(count), torch.arange(count) % 4 - 1], dim=1).long()
        return replace(batch(count), labels=words.where((words >= 0) & (words < 2), torch.tensor(-100)))
    if name == "future_hands":
        clips = batch(count)
        places = torch.rand(count, 5, 2, 2, generator=torch.Generator().manual_seed(2)) * 64
        seen, size = torch.ones(count, 5, 2, dtype=torch.bool), torch.full((count, 2), 64.0)
        return HandBatch(clips.video, clips.ids, positions=places, visible=seen, size=size)
    if name == "multiple_choice":
        return small_world.choices(count)
    if name not in ("temporal_localization", "refinement", "grounding"):
        return batch(count)
    values = torch.randn(count, 8 if name == "refinement" else 6, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(16)[None].expand(count, 16) < 14
    spans, labels = torch.tensor([[1.0, 4.0], [3.0, 13.5]]), torch.tensor([0, 2])
    if name == "grounding":
        ids, labels = tuple(map(str, range(count))), (torch.zeros(1, dtype=torch.int64),) * count
        words = torch.tensor([[2, 3, 4, 5], [2, 6, 7, 0]]).repeat(-(-count // 2), 1)[:count]
        return QueryBatch(values, mask, ids, (torch.tensor([[3.0, 9.5]]),) * count, labels, words=words)
    found = (values, mask, tuple(map(str, range(count))), (spans,) * count, (labels,) * count)
    if name == "refinement":
        return ProposalBatch(*found, proposals=(torch.tensor([[1.5, 4.0], [3.0, 12.0], [6.0, 8.0]]),) * count)
    return FeatureBatch(*found)


MODELS: dict[str, tuple[Callable[[], nn.Module], ...]] = {
    "masked": (small_world.pretraining_model,),
    "multimodal": (small_world.language_model,),
    "retrieval": (small_world.language_model, small_world.image_text_model),
    "supervised": (small_world.masked_classifier, small_world.multimodal_classifier),
    "open_set": (small_world.masked_classifier, small_world.multimodal_classifier),
    "temporal_localization": (detector,),
    "refinement": (refiner,),
    "grounding": (grounder,),
    "spatio_temporal_localization": (region_detector,),
    "anticipation": (anticipator,),
    "future_hands": (hand_encoder, hand_multimodal_encoder),
    "verb_noun": (masked_of_words, multimodal_of_words),
    "question_answering": (small_world.answering_model,),
    "multiple_choice": (small_world.choosing_model,),
    "waypoints": (small_navigation.navigator,),
    "navigation": (small_navigation.navigator,),
    "interaction": (small_world.cross_model,),
}
"""Stage -> small models that it trains, one of each kind in STAGES."""
TEXTS = ("multimodal", "retrieval")
CASES = [(name, build) for name, builds in MODELS.items() for build in builds]
IDS = [f"{name}-{build.__name__}" for name, build in CASES]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build_stage(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    return STAGES[name].stage(build(), STAGES[name].settings())


def test_every_stage_and_every_model_it_trains_is_tested() -> None:
    for name, entry in STAGES.items():
        models = [build() for build in MODELS[name]]
        assert all(any(isinstance(model, kind) for model in models) for kind in entry.models), name


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_settings_have_defaults_and_refuse_unknown_keys_and_changes(name: str) -> None:
    settings = STAGES[name].settings()
    with pytest.raises(ValidationError, match="no_such_key"):
        STAGES[name].settings.model_validate({"no_such_key": 1})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(STAGES[name].settings.model_fields)), 1)
    assert STAGES[name].settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(("name", "build"), CASES, ids=IDS)
def test_a_step_gives_finite_scalars_and_reaches_every_learning_parameter(
    name: str, build: Callable[[], nn.Module]
) -> None:
    stage = build_stage(name, build).train()
    with torch.no_grad():
        for parameter in stage.parameters():  # open what starts closed: gates, heads, fresh readings
            parameter.add_(torch.randn(parameter.shape, generator=generator()) * 0.05)
    losses = stage(inputs(name, 8), generator())
    assert {value.shape for value in losses.values()} == {torch.Size([])}
    assert all(bool(value.isfinite()) for value in losses.values())
    torch.autograd.backward(losses["loss"])
    for label, parameter in stage.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, label
            assert bool(parameter.grad.isfinite().all()), label
            assert bool(parameter.grad.any()), label
        else:
            assert parameter.grad is None, label


@pytest.mark.parametrize(("name", "build"), CASES, ids=IDS)
def test_the_loss_follows_from_the_generator_and_leaves_the_clips_alone(
    name: str, build: Callable[[], nn.Module]
) -> None:
    stage, clips = build_stage(name, build).eval(), inputs(name, 4)
    seen = next(value for value in vars(clips).values() if torch.is_tensor(value))
    before = seen.clone()
    state = torch.get_rng_state()
    first, again = (stage(clips, generator(3))["loss"] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    assert torch.equal(seen, before)


@pytest.mark.parametrize("name", [*TEXTS, "supervised", "open_set", "question_answering", "interaction"])
def test_a_batch_without_what_the_stage_learns_from_is_a_mistake(name: str) -> None:
    stage = build_stage(name, MODELS[name][0])
    missing = "captions" if name in TEXTS else "labels"
    with pytest.raises(ValueError, match=missing):
        stage(Batch(batch(2).video, ("a", "b")), generator())


# --- masked ----------------------------------------------------------------------------------------------------------


def test_masked_learns_more_than_the_mean_colour() -> None:
    stage = MaskedStage(small_world.pretraining_model(), MaskedSettings(ratio=0.5, normalize_targets=False))
    clips = batch(16)
    constant = stage.targets(clips.video, stage.sample_mask(len(clips), generator())).var().item()
    losses = learn(stage, clips, 100, rate=3e-3)
    assert sum(losses[-10:]) / 10 < 0.8 * constant < losses[0]


@pytest.mark.parametrize("kind", get_args(MaskKind))
def test_the_masked_count_is_known_without_looking(kind: MaskKind) -> None:
    model = small_world.pretraining_model()
    model.config = replace(model.config, frames=8)
    stage = MaskedStage(model, MaskedSettings(mask=kind, ratio=0.7))
    mask = stage.sample_mask(5, generator())
    assert mask.shape == (5, model.config.num_tokens)
    assert mask.sum(1).tolist() == [stage.num_masked] * 5
    video = torch.randint(0, 256, (5, 3, 8, 32, 32), generator=generator(), dtype=torch.uint8)
    targets = stage.targets(video, mask)
    assert targets.shape == (5, stage.num_masked, model.config.values_per_token)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(
        targets.unflatten(2, (-1, 3)).mean(2), torch.zeros(5, stage.num_masked, 3), atol=1e-4, rtol=0
    )


def test_a_mask_of_nothing_or_of_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="covers 0 of 32 tokens"):
        MaskedStage(small_world.pretraining_model(), MaskedSettings(ratio=0.01))
    with pytest.raises(ValueError, match="covers 32 of 32 tokens"):
        MaskedStage(small_world.pretraining_model(), MaskedSettings(mask="center", ratio=0.95))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", get_args(MaskKind))
def test_a_masked_step_does_not_wait_for_the_gpu(kind: MaskKind) -> None:
    model = small_world.pretraining_model()
    model.config = replace(model.config)
    stage = MaskedStage(model, MaskedSettings(mask=kind, ratio=0.7)).cuda()
    clips = batch(4).to(torch.device("cuda"))
    device = torch.Generator("cuda").manual_seed(0)
    torch.autograd.backward(stage(clips, device)["loss"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.backward(stage(clips, device)["loss"])
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- multimodal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_frame", [False, True], ids=["video", "image"])
def test_multimodal_matches_clips_and_captions(single_frame: bool) -> None:
    clips = batch(12, single_frame=single_frame)
    assert clips.video.shape[2] == (1 if single_frame else small_world.FRAMES)
    stage = MultimodalStage(small_world.language_model(), MultimodalSettings(caption_weight=0.0))
    losses = learn(stage, clips, 30)
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < 0.5 * torch.tensor(12.0).log().item()  # the loss of a guess


def test_multimodal_learns_to_write_captions() -> None:
    settings = MultimodalSettings(contrastive_weight=0.0, max_captioned_clips=4)
    stage = MultimodalStage(small_world.language_model(), settings)
    losses = learn(stage, batch(4), 15, rate=1e-2)
    assert losses[-1] < 0.5 * losses[0]


def test_multimodal_losses_add_up_with_their_weights() -> None:
    clips = batch(4)
    parts = {}
    for weights in ((1.0, 0.0), (0.5, 2.0)):
        settings = MultimodalSettings(contrastive_weight=weights[0], caption_weight=weights[1])
        parts[weights] = MultimodalStage(small_world.language_model(), settings).eval()(clips, generator())
    alone, both = parts.values()
    assert "caption" not in alone
    assert torch.equal(alone["loss"], alone["contrastive"])
    torch.testing.assert_close(both["contrastive"], alone["contrastive"])
    torch.testing.assert_close(both["loss"], 0.5 * both["contrastive"] + 2.0 * both["caption"])


def test_multimodal_needs_a_decoder_for_captions() -> None:
    silent = VideoLanguage(replace(small_world.LANGUAGE, caption=None))
    with pytest.raises(ValueError, match="caption decoder"):
        MultimodalStage(silent, MultimodalSettings())


def test_equal_captions_of_a_batch_are_as_good_as_positives() -> None:
    """Value and gradients of the published loss are those of the one that accepts every equal caption."""
    clips, identity = batch(6), torch.tensor([0, 1, 0, 2, 0, 1])
    assert clips.text_ids is not None
    few = replace(clips, text_ids=clips.text_ids[identity])
    assert len(set(map(tuple, clips.text_ids[:3].tolist()))) == 3, "captions that differ to begin with"
    stage = MultimodalStage(small_world.language_model(), MultimodalSettings(caption_weight=0.0))
    learn(stage, clips, 5)
    learning = [p for p in stage.eval().parameters() if p.requires_grad]
    loss = stage(few, generator())["loss"]
    encoded = stage.model(stage.model.normalize(few.video), few.text_ids, max_captioned_clips=0)
    similarity = stage.model.scale * F.normalize(encoded.video, dim=-1) @ F.normalize(encoded.text, dim=-1).t()
    positives = (identity[:, None] == identity).to(similarity)
    positives /= positives.sum(dim=1, keepdim=True)
    accepting = (F.cross_entropy(similarity, positives) + F.cross_entropy(similarity.t(), positives)) / 2
    torch.testing.assert_close(loss, accepting)
    gradients = [torch.autograd.grad(each, learning, allow_unused=True) for each in (loss, accepting)]
    assert any(one is not None and one.abs().max() > 1e-3 for one in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert loss > 3 / 6 * torch.tensor(3.0).log() + 2 / 6 * torch.tensor(2.0).log()


# --- supervised ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS["supervised"])
def test_supervised_tells_left_from_right_better_than_chance(build: Callable[[], nn.Module]) -> None:
    clips = batch(16)
    assert clips.labels is not None
    stage = SupervisedStage(build(), SupervisedSettings())  # type: ignore[arg-type]  # both kinds of classifier
    losses = learn(stage, clips, 40)
    with torch.no_grad():
        guesses = stage.eval().model(stage.model.normalize(clips.video)).argmax(1)
    chance = 1 / len(CLASSES)
    assert (guesses == clips.labels).float().mean().item() > chance + 0.3
    assert min(losses[-10:]) < 0.6 * losses[0]


def test_supervised_takes_soft_targets_as_they_are_and_smooths_labels() -> None:
    clips = batch(4)
    assert clips.labels is not None
    soft = torch.nn.functional.one_hot(clips.labels, len(CLASSES)).float() * 0.8 + 0.1
    model = small_world.masked_classifier().eval()
    smoothed, plain = (SupervisedStage(model, SupervisedSettings(label_smoothing=s)) for s in (0.2, 0.0))
    expected = smoothed(clips, generator())["loss"]
    for stage in (smoothed, plain):
        torch.testing.assert_close(stage(replace(clips, labels=soft), generator())["loss"], expected)
    assert not torch.equal(plain(clips, generator())["loss"], expected)


def test_supervised_shows_the_model_every_nth_frame() -> None:
    model = small_world.multimodal_classifier().eval()
    clips = batch(4)
    half = replace(clips, video=clips.video[:, :, ::2])
    stepped = SupervisedStage(model, SupervisedSettings(temporal_stride=2))(clips, generator())["loss"]
    assert torch.equal(stepped, SupervisedStage(model, SupervisedSettings())(half, generator())["loss"])


# --- interaction -----------------------------------------------------------------------------------------------------


def test_interaction_learns_and_leaves_the_encoders_untouched() -> None:
    model = small_world.cross_model()
    assert isinstance(model, CrossModel)
    stage = InteractionStage(model, InteractionSettings(temporal_stride=1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = learn(stage, batch(16), 30, rate=5e-3)
    assert min(losses[-10:]) < 0.6 * losses[0]
    learning = set(model.trainable_names)
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= learning
    moved = {name.split(".")[0] for name in learning if not torch.equal(before[name], after[name])}
    assert moved == {"cma", "fuse", "masked", "multimodal"}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in learning), name


def test_interaction_gives_each_encoder_its_frames() -> None:
    model = small_world.cross_model()
    assert isinstance(model, CrossModel)
    shapes: list[tuple[int, ...]] = []
    for part in (model.masked.normalize, model.multimodal.normalize):
        part.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    InteractionStage(model, InteractionSettings(temporal_stride=2))(batch(2), generator())
    assert [shape[2] for shape in shapes] == [4, 2]
