"""Decode token sequences by greedy search, beam search or nucleus (top-p) sampling.

Shapes: B texts, K beams, R = B * K rows, l ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def generate(
    next_log_probs: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    start: int,
    end: int,
    max_length: int,
    *,
    device: torch.device,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    reorder: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Decode B token sequences by beam search with K beams (K = 1: greedy).

    Args:
        next_log_probs: (ids (R, l), index (R,) of the text of each row) -> log probabilities of the next token (R, V).
            Each call has one token per row more than the call before.
        batch_size: B.
        start, end: ids of the start and the end of a text.
        max_length: largest number of ids of a text, start and end included.
        device: of the ids that `next_log_probs` takes.
        num_beams: K.
        length_penalty: candidates are ranked by log probability / number of tokens ** length_penalty.
        reorder: called after each step with (R,): for each row of the next call, the row of the last call that it
            continues; reorders a KV cache.

    Returns:
        (B, max_length) int64 ids, zero after the end; a text truncated at `max_length` also ends with `end`.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams {num_beams}: expected at least 1")
    text_index = torch.arange(batch_size, device=device)
    ids = torch.full((batch_size, num_beams, 1), start, device=device)
    # At first only one beam of each text is finite, or all K would generate the same text.
    log_probs = torch.full((batch_size, num_beams), -torch.inf, device=device)
    log_probs[:, 0] = 0.0
    num_tokens = torch.zeros(batch_size, num_beams, device=device)
    finished = torch.zeros(batch_size, num_beams, dtype=torch.bool, device=device)
    for _ in range(max_length - 2):
        scores = next_log_probs(ids.flatten(0, 1), text_index.repeat_interleave(num_beams)).reshape(
            batch_size, num_beams, -1
        )
        vocabulary = scores.shape[2]
        scores[:, :, start] = -torch.inf
        # A finished beam remains one candidate: its next token is padding (id 0) with log probability 0.
        padding = torch.full((vocabulary,), -torch.inf, device=device)
        padding[0] = 0.0
        candidates = log_probs[:, :, None] + torch.where(finished[:, :, None], padding, scores)
        lengths = num_tokens + (~finished).float()
        ranks = (candidates / lengths[:, :, None] ** length_penalty).flatten(1)
        best = ranks.topk(num_beams, dim=1).indices
        beam, word = best // vocabulary, best % vocabulary
        log_probs = candidates.flatten(1).gather(1, best)
        num_tokens, finished = lengths.gather(1, beam), finished.gather(1, beam) | (word == end)
        ids = torch.cat([ids.gather(1, beam[:, :, None].expand(-1, -1, ids.shape[2])), word[:, :, None]], dim=2)
        if bool(finished.all()):
            break
        if reorder is not None and num_beams > 1:
            reorder((text_index[:, None] * num_beams + beam).flatten())
    best_beam = (log_probs / num_tokens.clamp(min=1) ** length_penalty).argmax(dim=1)
    best_ids, done = ids[text_index, best_beam], finished[text_index, best_beam]
    out = torch.zeros(batch_size, max_length, dtype=torch.long, device=device)
    out[:, : best_ids.shape[1]] = best_ids
    out[~done, best_ids.shape[1]] = end
    return out


def sample(
    next_log_probs: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    start: int,
    end: int,
    max_length: int,
    *,
    device: torch.device,
    top_p: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Decode B token sequences by nucleus sampling: from the most probable tokens whose total probability is `top_p`.

    Args:
        next_log_probs, batch_size, start, end, max_length, device: as in `generate`.
        top_p: above 0, up to 1 (all tokens).
        temperature: divides the log probabilities.
        generator: on the CPU, so that every device samples the same text_index.

    Returns:
        as `generate`.
    """
    if not 0 < top_p <= 1 or temperature <= 0:
        raise ValueError(f"top_p {top_p}, temperature {temperature}: expected 0 < top_p <= 1 and temperature > 0")
    text_index = torch.arange(batch_size, device=device)
    out = torch.zeros(batch_size, max_length, dtype=torch.long, device=device)
    out[:, 0] = start
    finished = torch.zeros(batch_size, dtype=torch.bool, device=device)
    for position in range(1, max_length):
        if position == max_length - 1:
            token = torch.full_like(text_index, end)
        else:
            scores = next_log_probs(out[:, :position], text_index).clone()
            scores[:, start] = -torch.inf
            probabilities, tokens = (scores / temperature).softmax(dim=1).sort(dim=1, descending=True)
            mass_before = probabilities.cumsum(dim=1) - probabilities  # 0 for the first token, which stays possible
            probabilities = probabilities.masked_fill(mass_before >= top_p, 0.0)
            sampled = torch.multinomial(probabilities.cpu(), 1, generator=generator).to(device)
            token = tokens.gather(1, sampled)[:, 0]
        out[:, position] = token.masked_fill(finished, 0)
        finished |= token == end
        if bool(finished.all()):
            break
    return out
