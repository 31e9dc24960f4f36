"""Train only the rows of the token tables that occur in the training texts.

A caption set of a few hundred words uses a few hundred of 49,408 token ids; embedding, predicting and updating the rest
takes most of a small model's step. The other rows stay unchanged, saved files keep their layout, and tokens that do not
occur are masked in generation by the bias of the last layer. Shapes: V vocabulary, K ids that occur, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.data.tokenizer import Tokenizer
from internvideo.models.video_language import VideoLanguage

MASKED = -1e4
"""Bias of a token that was not trained: it is never generated, in any precision."""


class _TableSubset(nn.Module):
    """Tables of V rows, K of which are parameters; the state dict is that of the whole tables."""

    row_of: Tensor
    ids: Tensor

    def __init__(self, tables: dict[str, Tensor], ids: Tensor) -> None:
        super().__init__()
        first = next(iter(tables.values()))
        ids = ids.to(first.device)
        self.names = tuple(tables)
        self.register_buffer("ids", ids, persistent=False)
        row_of = torch.full((len(first),), -1, device=ids.device)
        row_of[ids] = torch.arange(len(ids), device=ids.device)
        self.register_buffer("row_of", row_of, persistent=False)
        for name, table in tables.items():
            self.register_buffer(f"whole_{name}", table.detach().clone(), persistent=False)
            self.register_parameter(f"{name}_rows", nn.Parameter(table.detach()[ids].clone()))

    def whole(self, name: str) -> Tensor:
        """Return a table (V, ...) with the trained rows in it."""
        return self.get_buffer(f"whole_{name}").index_copy(0, self.ids, self.get_parameter(f"{name}_rows"))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self.names:
            destination[prefix + name] = self.whole(name) if keep_vars else self.whole(name).detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        for name in self.names:
            table, whole = state_dict.get(prefix + name), self.get_buffer(f"whole_{name}")
            if table is None:
                missing_keys.append(prefix + name)
            elif table.shape != whole.shape:
                error_msgs.append(f"{prefix}{name}: {tuple(table.shape)}, expected {tuple(whole.shape)}")
            else:
                whole.copy_(table)
                self.get_parameter(f"{name}_rows").copy_(whole[self.ids])


class EmbeddingSubset(_TableSubset):
    """Token embedding with K trainable rows; the other rows are constant."""

    def __init__(self, embedding: nn.Embedding, ids: Tensor) -> None:
        super().__init__({"weight": embedding.weight}, ids)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, D)."""
        row = self.row_of[ids]
        trained = F.embedding(row.clamp(min=0), self.get_parameter("weight_rows"))
        return torch.where((row < 0)[..., None], self.get_buffer("whole_weight")[ids], trained)


class LinearSubset(_TableSubset):
    """Output layer with K trainable rows: logits of these in training, of the whole vocabulary otherwise."""

    def __init__(self, layer: nn.Linear, ids: Tensor) -> None:
        super().__init__({"weight": layer.weight, "bias": layer.bias}, ids)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) in training, (..., V) in evaluation."""
        if self.training:
            return F.linear(x, self.get_parameter("weight_rows"), self.get_parameter("bias_rows"))
        return F.linear(x, self.whole("weight"), self.whole("bias"))


def token_ids(texts: Iterable[str], context_length: int) -> Tensor:
    """Return the ids (K,), ascending, that occur in the texts, with padding, start and end."""
    tokenizer = Tokenizer(context_length=context_length)
    ids = {0, tokenizer.start, tokenizer.end}
    for text in dict.fromkeys(texts):
        ids.update(tokenizer.encode(text)[0].tolist())
    return torch.tensor(sorted(ids))


@torch.no_grad()
def unmask(model: VideoLanguage) -> None:
    """Reset the bias of tokens that an earlier run masked to 0, in place."""
    layer = _output_layer(model)
    if isinstance(layer, nn.Linear):
        layer.bias.masked_fill_(layer.bias <= MASKED, 0.0)


@torch.no_grad()
def train_subset(model: VideoLanguage, ids: Tensor) -> None:
    """Train only the rows `ids` (K,), in place: of the token embedding and of the caption decoder's output."""
    embedding = model.text.token_embedding
    if isinstance(embedding, nn.Embedding):
        model.text.token_embedding = EmbeddingSubset(embedding, ids)  # type: ignore[assignment]  # the same call
    layer = _output_layer(model)
    if isinstance(layer, nn.Linear) and model.caption_decoder is not None:
        absent = torch.ones(len(layer.bias), dtype=torch.bool, device=layer.bias.device)
        absent[ids] = False
        layer.bias[absent] = MASKED
        predictor = model.caption_decoder.predictor
        assert isinstance(predictor, nn.Sequential)
        predictor[-1] = LinearSubset(layer, ids)
    model.train(model.training)  # the new modules too


def rows_of(model: VideoLanguage, tokens: Tensor) -> Tensor:
    """Map ids (B, L) to the indices of their logits (B, L): rows of the subset, or the ids without one."""
    layer = _output_layer(model)
    return layer.row_of[tokens].clamp(min=0) if isinstance(layer, LinearSubset) else tokens


def _output_layer(model: VideoLanguage) -> nn.Module | None:
    predictor = None if model.caption_decoder is None else model.caption_decoder.predictor
    return predictor[-1] if isinstance(predictor, nn.Sequential) else None
