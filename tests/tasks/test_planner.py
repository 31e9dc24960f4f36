"""The navigation planner: every stored tensor of the published one at reduced width, and what masks mean."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS
from torch import Tensor, nn

from internvideo.models.attention import attend, split_heads
from internvideo.tasks.navigation.planner import CONTEXT, STOP, CrossLayer, Observation, Plan, Planner, PlannerConfig
from internvideo.weights.state import load_reference

FOLDER = GOLDENS / "tasks" / "vln_planner"
STORED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 5e-6}


@cache
def arrays() -> dict[str, Tensor]:
    with np.load(FOLDER / "planner.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


STEPS = range(len({name.split("/")[1] for name in arrays() if name.startswith("in/step")}))


def config() -> PlannerConfig:
    stored = STORED["config"]
    return PlannerConfig(
        rgb_width=stored["image_feat_size"],
        depth_width=stored["depth_feat_size"],
        width=stored["hidden_size"],
        heads=stored["num_attention_heads"],
        hidden=stored["intermediate_size"],
        text_layers=stored["num_l_layers"],
        cross_layers=stored["num_x_layers"],
        panorama_layers=stored["num_h_pano_layers"],
        vocab_size=stored["vocab_size"],
        max_words=stored["max_position_embeddings"],
        max_steps=stored["max_action_steps"],
        frozen_words=stored["fix_lang_embedding"],
        frozen_history=stored["fix_hist_embedding"],
    )


@cache
def planner() -> Planner:
    model = Planner(config()).eval()
    load_reference(model, {name[6:]: value for name, value in arrays().items() if name.startswith("param/")})
    return model


def observation() -> Observation:
    names = ("ob_rgb_fts", "ob_dep_fts", "ob_ang_fts", "ob_dis_fts", "ob_nav_types", "ob_masks")
    return Observation(*(arrays()[f"in/{name}"] for name in names))


@cache
@torch.no_grad()
def outputs() -> dict[str, Tensor]:
    model, stored = planner(), arrays()
    mask = stored["in/txt_masks"]
    text = model.encode_text(stored["in/txt_ids"], mask)
    history = [model.history.start_tokens(len(mask))]
    for step in STEPS:
        rgb, angle, views, angles = (
            stored[f"in/step{step}/hist_{name}_fts"] for name in ("rgb", "ang", "pano_rgb", "pano_ang")
        )
        history.append(model.history(rgb, angle, views, angles, int(stored[f"in/step{step}/ob_step_ids"])))
    read: list[Tensor] = []
    layer = model.cross_layers[-1]
    assert isinstance(layer, CrossLayer)
    last = layer.cross.attn

    def weights(module: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        query, key = split_heads(last.q(inputs[0]), last.heads), split_heads(last.k(inputs[1]), last.heads)
        unit = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
        seen = attend(query, key, unit, attn_mask=kwargs["attn_mask"])
        read.append(seen.view(*seen.shape[:2], last.heads, -1))

    hook = last.register_forward_pre_hook(weights, with_kwargs=True)
    plan: Plan = model(text, mask, torch.stack(history, dim=1), stored["in/hist_masks"], observation())
    hook.remove()
    return {
        "txt_embeds": text,
        "hist_cls": history[0],
        **{f"hist_step{step}": history[step + 1] for step in STEPS},
        "action_logits": plan.scores,
        "nav_txt_embeds": plan.text,
        "nav_hist_embeds": plan.history,
        "nav_ob_embeds": plan.observation,
        "lang_attention": read[1][:, 0],  # what the start token reads of the text
    }


OUTPUTS = sorted(name for name in arrays() if name.startswith("out/"))


@pytest.mark.parity
@pytest.mark.parametrize("name", OUTPUTS)
def test_every_stored_output(name: str) -> None:
    torch.testing.assert_close(outputs()[name.removeprefix("out/")], arrays()[name], **CLOSE)


@pytest.mark.parity
def test_the_scores_in_the_other_file_and_nothing_left_unread() -> None:
    assert set(STORED) == {"config", "action_logits"}
    scores = torch.tensor([[-torch.inf if x is None else x for x in row] for row in STORED["action_logits"]])
    torch.testing.assert_close(outputs()["action_logits"], scores, **CLOSE)
    inputs = {name for name in arrays() if name.startswith("in/") and "depth" not in name}
    used = {f"in/{name}" for name in ("txt_ids", "txt_masks", "hist_masks")}
    used |= {f"in/ob_{name}" for name in ("rgb_fts", "dep_fts", "ang_fts", "dis_fts", "nav_types", "masks")}
    kinds = ("hist_rgb_fts", "hist_ang_fts", "hist_pano_rgb_fts", "hist_pano_ang_fts", "ob_step_ids")
    assert inputs == used | {f"in/step{step}/{kind}" for step in STEPS for kind in kinds}


# --- masks and settings ----------------------------------------------------------------------------------------------


@torch.no_grad()
def scores(seen: Observation, ids: Tensor | None = None) -> Tensor:
    model, stored = planner(), arrays()
    mask = stored["in/txt_masks"]
    text = model.encode_text(stored["in/txt_ids"] if ids is None else ids, mask)
    history = model.history.start_tokens(2)[:, None]
    plan: Plan = model(text, mask, history, torch.ones(2, 1, dtype=torch.bool), seen)
    return plan.scores


def test_padding_changes_nothing() -> None:
    seen, ids = observation(), arrays()["in/txt_ids"].clone()
    padding = ~seen.mask
    noisy = seen._replace(rgb=torch.where(padding[..., None], 9.0, seen.rgb))
    assert bool(padding.any())
    torch.testing.assert_close(scores(noisy), scores(seen), **CLOSE)
    ids[~arrays()["in/txt_masks"]] = 1
    torch.testing.assert_close(scores(seen, ids), scores(seen), **CLOSE)


def test_context_cannot_be_chosen_but_is_seen() -> None:
    seen = observation()
    context = (seen.kind == CONTEXT) & seen.mask
    assert bool(scores(seen)[context].isinf().all())
    changed = seen._replace(rgb=torch.where(context[..., None], seen.rgb + 1, seen.rgb))
    stop = seen.kind == STOP
    assert not torch.allclose(scores(changed)[stop], scores(seen)[stop])


def test_frozen_parts_do_not_learn_and_too_many_words_are_a_mistake() -> None:
    model = Planner(replace(config(), frozen_words=True, frozen_history=True))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("history.")} | {
        "words.word.weight"
    }
    with pytest.raises(ValueError, match="at most 40"):
        model.encode_text(torch.zeros(1, 41, dtype=torch.int64), torch.ones(1, 41, dtype=torch.bool))
