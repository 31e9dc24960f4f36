"""Train only the token embeddings and output rows of the tokens that occur in the training texts.

Captions of a few hundred words use a few hundred of 49,408 token ids; embedding, predicting and updating the others
takes most of a small model's step. The other rows stay unchanged, and saved files keep their layout. Tokens that do not
occur are never generated: the bias of the output layer masks them. Shapes: V vocabulary, K ids that occur, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvideo.data.tokenizer import Tokenizer
from internvideo.models.video_language import VideoLanguage

MASKED_BIAS = -1e4
"""Output bias of a token that does not occur: low enough in any precision that it is never generated."""


class _TableSubset(nn.Module):
    """Tables of V rows, K of which are parameters; the state dict has the full tables."""

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
            self.register_buffer(f"full_{name}", table.detach().clone(), persistent=False)
            self.register_parameter(f"{name}_rows", nn.Parameter(table.detach()[ids].clone()))

    def full_table(self, name: str) -> Tensor:
        """Return a full table (V, ...), the trained rows included."""
        return self.get_buffer(f"full_{name}").index_copy(0, self.ids, self.get_parameter(f"{name}_rows"))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self.names:
            destination[prefix + name] = self.full_table(name) if keep_vars else self.full_table(name).detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        for name in self.names:
            table, full_table = state_dict.get(prefix + name), self.get_buffer(f"full_{name}")
            if table is None:
                missing_keys.append(prefix + name)
            elif table.shape != full_table.shape:
                error_msgs.append(f"{prefix}{name}: {tuple(table.shape)}, expected {tuple(full_table.shape)}")
            else:
                full_table.copy_(table)
                self.get_parameter(f"{name}_rows").copy_(full_table[self.ids])


class EmbeddingSubset(_TableSubset):
    """Token embedding with K trainable rows; the other rows are constant."""

    def __init__(self, embedding: nn.Embedding, ids: Tensor) -> None:
        super().__init__({"weight": embedding.weight}, ids)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, D)."""
        row = self.row_of[ids]
        trained = F.embedding(row.clamp(min=0), self.get_parameter("weight_rows"))
        return torch.where((row < 0)[..., None], self.get_buffer("full_weight")[ids], trained)


class LinearSubset(_TableSubset):
    """Output layer with K trainable rows: logits of these in training, of the full vocabulary in evaluation."""

    def __init__(self, layer: nn.Linear, ids: Tensor) -> None:
        super().__init__({"weight": layer.weight, "bias": layer.bias}, ids)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) in training, (..., V) in evaluation."""
        if self.training:
            return F.linear(x, self.get_parameter("weight_rows"), self.get_parameter("bias_rows"))
        return F.linear(x, self.full_table("weight"), self.full_table("bias"))


def used_token_ids(texts: Iterable[str], context_length: int) -> Tensor:
    """Return the token ids (K,), ascending, that occur in the texts, and those of padding, start and end."""
    tokenizer = Tokenizer(context_length=context_length)
    ids = {0, tokenizer.start, tokenizer.end}
    for text in dict.fromkeys(texts):
        ids.update(tokenizer.encode(text)[0].tolist())
    return torch.tensor(sorted(ids))


@torch.no_grad()
def reset_masked_bias(model: VideoLanguage) -> None:
    """Reset the output bias of masked tokens to 0, in place: an earlier run masked those that it did not train."""
    layer = _output_layer(model)
    if isinstance(layer, nn.Linear):
        layer.bias.masked_fill_(layer.bias <= MASKED_BIAS, 0.0)


@torch.no_grad()
def train_subset(model: VideoLanguage, ids: Tensor) -> None:
    """Train only the rows `ids` (K,), in place: of the token embedding and of the caption decoder's output."""
    embedding = model.text.token_embedding
    if isinstance(embedding, nn.Embedding):
        model.text.token_embedding = EmbeddingSubset(embedding, ids)  # type: ignore[assignment]  # the same call
    layer = _output_layer(model)
    if isinstance(layer, nn.Linear) and model.caption_decoder is not None:
        unused = torch.ones(len(layer.bias), dtype=torch.bool, device=layer.bias.device)
        unused[ids] = False
        layer.bias[unused] = MASKED_BIAS
        predictor = model.caption_decoder.predictor
        assert isinstance(predictor, nn.Sequential)
        predictor[-1] = LinearSubset(layer, ids)
    model.train(model.training)  # sets the mode of the new modules


def logit_indices(model: VideoLanguage, tokens: Tensor) -> Tensor:
    """Map ids (B, L) to the indices of their logits (B, L): rows of the subset, or the ids without one."""
    layer = _output_layer(model)
    return layer.row_of[tokens].clamp(min=0) if isinstance(layer, LinearSubset) else tokens


def _output_layer(model: VideoLanguage) -> nn.Module | None:
    predictor = None if model.caption_decoder is None else model.caption_decoder.predictor
    return predictor[-1] if isinstance(predictor, nn.Sequential) else None
