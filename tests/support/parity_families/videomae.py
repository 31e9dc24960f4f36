"""VideoMAE: pretraining model and classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.objectives.reconstruction import pixel_targets, reconstruction_loss
from internvideo.weights.state import convert_reference, load_reference
from parity_families.case import Case, Family, Value, grad_norms, gradients, total_norm


def classifier_config(arguments: dict[str, Any]) -> VideoMAEConfig:
    """The published classifier's constructor arguments as our config."""
    return VideoMAEConfig(
        image_size=arguments["img_size"],
        patch_size=arguments["patch_size"],
        frames=arguments["all_frames"],
        tubelet=arguments["tubelet_size"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        heads=arguments["num_heads"],
        mlp_ratio=arguments["mlp_ratio"],
        qkv_bias=arguments["qkv_bias"],
        layer_scale=arguments["init_values"],
        num_classes=arguments["num_classes"],
        drop_path=arguments["drop_path_rate"],
        head_dropout=arguments["head_drop_rate"],
        pooling="mean" if arguments["use_mean_pooling"] else "first",
        learnable_positions=arguments.get("use_learnable_pos_emb", False),
        position_table="resized",
        init_scale=arguments["init_scale"],
    )


def build_pretrain(case: Case) -> VideoMAEPretrain:
    arguments = case.info["constructor"]
    config = VideoMAEConfig(
        image_size=arguments["img_size"],
        patch_size=arguments["patch_size"],
        frames=case.info["num_frames"],
        tubelet=arguments["tubelet_size"],
        width=arguments["encoder_embed_dim"],
        depth=arguments["encoder_depth"],
        heads=arguments["encoder_num_heads"],
        mlp_ratio=arguments["mlp_ratio"],
        decoder_width=arguments["decoder_embed_dim"],
        decoder_depth=arguments["decoder_depth"],
        decoder_heads=arguments["decoder_num_heads"],
        qkv_bias=arguments["qkv_bias"],
        layer_scale=arguments["init_values"],
    )
    assert config.values_per_token == arguments["decoder_num_classes"]
    model = VideoMAEPretrain(config)
    load_reference(model, case.weights, where=case.name)
    return model.eval()


def compute_pretrain(case: Case, dtype: torch.dtype) -> dict[str, Value]:
    model = build_pretrain(case).to(dtype)
    config = model.config
    video, mask = case.input("video", dtype), case.io["mask"].bool()
    assert config.grid == tuple(case.info["mask"]["window"])
    assert int(mask[0].sum()) == config.grid[0] * case.info["mask"]["masked_per_slot"]
    prediction = model(video, mask)
    targets = {
        normalize: pixel_targets(
            video * model.normalize.std + model.normalize.mean, mask, config.tubelet, config.patch_size, normalize
        )
        for normalize in (True, False)
    }
    loss = reconstruction_loss(prediction, targets[True])
    raw = reconstruction_loss(prediction, targets[False])
    found = gradients(model, loss)
    values: dict[str, Value] = {
        "pred": prediction,
        "pred64": prediction,
        "encoder_out64": model.encode(video, mask),
        "target_norm_first8": targets[True][:, :8],
        "target_raw_first8": targets[False][:, :8],
        "enc_pos_embed": model.encoder.pos_embed,
        "dec_pos_embed": model.decoder.pos_embed,
        "loss.norm_pix.loss32": loss.item(),
        "loss.norm_pix.loss64": loss.item(),
        "loss.raw_pix.loss32": raw.item(),
        "loss.raw_pix.loss64": raw.item(),
        "loss.norm_pix.fp32_vs_fp64_pred_maxabs": (prediction - case.io["pred64"]).abs().max().item(),
        "loss.norm_pix.total_grad_norm64": total_norm(found),
        "grad_norms64_norm_pix_loss": grad_norms(model, found, case.info["grad_norms64_norm_pix_loss"]),
    }
    values |= selected_gradients(case, model, found)
    return values


def selected_gradients(case: Case, model: torch.nn.Module, found: dict[str, torch.Tensor]) -> dict[str, Value]:
    """The full gradients stored as grad64.NAME, in the published tensor's shape."""
    values: dict[str, Value] = {}
    for stored, tensor in case.io.items():
        if not stored.startswith("grad64."):
            continue
        ours, unused = convert_reference(model, {stored.removeprefix("grad64."): tensor})
        assert not unused, unused
        (name,) = ours
        values[stored] = found[name].reshape(tensor.shape)
    return values


def build_classifier(case: Case) -> VideoMAEClassifier:
    model = VideoMAEClassifier(classifier_config(case.info["constructor"]))
    load_reference(model, case.weights, where=case.name)
    return model.eval()


def classifier_video(case: Case, dtype: torch.dtype) -> torch.Tensor:
    if "video" in case.io:
        return case.input("video", dtype)
    low = case.input("video_lowres", dtype)
    factor = case.info["constructor"]["img_size"] // low.shape[-1]
    return low.repeat_interleave(factor, 3).repeat_interleave(factor, 4)


def compute_classifier(case: Case, dtype: torch.dtype) -> dict[str, Value]:
    model = build_classifier(case)
    table = model.pos_embed.detach().clone()
    if "pos_embed" in case.io:
        # Float64 outputs hold to 1e-9 with the stored table; ours is compared with it as a quantity of its own.
        with torch.no_grad():
            model.pos_embed.copy_(case.io["pos_embed"])
    model = model.to(dtype)
    video = classifier_video(case, dtype)
    logits, features = model(video), model.features(video)
    loss = F.cross_entropy(logits, case.io["labels"])
    found = gradients(model, loss)
    return {
        "logits": logits,
        "logits64": logits,
        "features": features,
        "features64": features,
        "pos_embed": table,
        "ce_loss32": loss.item(),
        "ce_loss64": loss.item(),
        "grad_norms64_ce": grad_norms(model, found, case.info["grad_norms64_ce"]),
    }


PRETRAIN = Family(
    build=build_pretrain,
    compute=compute_pretrain,
    inputs=frozenset({"video", "mask"}),
    settings=frozenset({"num_frames", "mask"}),
)
CLASSIFIER = Family(
    build=build_classifier,
    compute=compute_classifier,
    inputs=frozenset({"video", "video_lowres", "labels"}),
)
