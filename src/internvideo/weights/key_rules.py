"""Map published parameter names to ours: rules, tables of rules, and the tables of VideoMAE.

Source: published checkpoints (state dict keys).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

Convert = Callable[[Tensor, nn.Module], tuple[Tensor, ...]]
"""(published tensor, our model) -> one tensor for each of our names; linear, so it converts gradients too."""


@dataclass(frozen=True)
class Rule:
    r"""One row of a table.

    Attributes:
        official: regular expression of the complete published key.
        ours: templates of our names (\1, \g<name> refer to groups of `official`); one per tensor of `convert`.
        convert: None to use the tensor unchanged.
    """

    official: str
    ours: tuple[str, ...]
    convert: Convert | None = None

    def names(self, key: str) -> tuple[str, ...] | None:
        """Return our names for a published key, None if the rule does not match."""
        match = re.fullmatch(self.official, key)
        return None if match is None else tuple(match.expand(template) for template in self.ours)

    def published_key(self, name: str) -> str | None:
        """Return the published key of one of our names, None if the rule does not match; ignores `convert`."""
        names, template = invert_renaming(self.official, self.ours[0])
        match = re.fullmatch(names, name)
        return None if match is None else match.expand(template)

    def apply(self, tensor: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
        """Convert a published tensor to our tensors, in the order of `names`."""
        return (tensor,) if self.convert is None else self.convert(tensor, model)


def invert_renaming(pattern: str, template: str) -> tuple[str, str]:
    r"""Invert a renaming: return the regular expression of the new names and the template of the old ones.

    Args:
        pattern: of the old names, with plain groups; optional groups (?:...)? are omitted from the result.
        template: of the new names, with \1, \2, ...
    """
    old = re.sub(r"\(\?:[^()]*\)\?", "", pattern)
    new = re.escape(template)
    for index, group in enumerate(re.findall(r"\([^()]*\)", old), 1):
        new = new.replace(rf"\\{index}", f"(?P<g{index}>{group[1:-1]})")
        old = old.replace(group, rf"\g<g{index}>", 1)
    return new, old.replace(r"\.", ".")


def same(pattern: str) -> Rule:
    """Return the rule for published keys that equal our names."""
    return Rule(f"({pattern})", (r"\1",))


@dataclass(frozen=True)
class WeightTable:
    """The rules of one model family; the first that matches a key applies.

    Attributes:
        family: name for messages.
        rules: in order of precedence.
        ignored: regular expressions of published keys without information (constant buffers).
        derived: regular expressions of our names that have no published key (constants that our model computes).
    """

    family: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = field(default=())
    derived: tuple[str, ...] = field(default=())

    def find(self, key: str) -> Rule | None:
        """Return the rule for a published key, None if there is none."""
        return next((rule for rule in self.rules if re.fullmatch(rule.official, key)), None)

    def published_key(self, name: str) -> str:
        """Return the published key of one of our names. Raises ValueError: none."""
        for rule in self.rules:
            if (key := rule.published_key(name)) is not None:
                return key
        raise ValueError(f"no published name for {name}")

    def ignores(self, key: str) -> bool:
        """Return whether a published key is ignored."""
        return matches(self.ignored, key)


def matches(patterns: Iterable[str], key: str) -> bool:
    """Return whether any of the patterns matches the complete key."""
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def flatten_kernel(tensor: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """Flatten a convolution with kernel = stride (D, 3, ...) to a matrix (D, 3 * ...); a matrix is unchanged."""
    return (tensor.flatten(1),)


_BLOCK = (
    r"blocks\.\d+\.(?:norm[12]\.(?:weight|bias)|attn\.(?:qkv\.weight|q_bias|v_bias|proj\.weight|proj\.bias)"
    r"|mlp\.fc[12]\.(?:weight|bias)|gamma_[12])"
)

VIDEOMAE_PRETRAIN = WeightTable(
    family="VideoMAE pretraining",
    rules=(
        Rule(r"(encoder\.patch_embed\.proj\.weight)", (r"\1",), flatten_kernel),
        same(r"encoder\.patch_embed\.proj\.bias"),
        same(rf"(?:encoder|decoder)\.{_BLOCK}"),
        same(r"(?:encoder|decoder)\.norm\.(?:weight|bias)"),
        same(r"encoder\.pos_embed|mask_token|encoder_to_decoder\.weight|decoder\.head\.(?:weight|bias)"),
    ),
)

VIDEOMAE_CLASSIFIER = WeightTable(
    family="VideoMAE classifier",
    rules=(
        Rule(r"(patch_embed\.proj\.weight)", (r"\1",), flatten_kernel),
        same(r"patch_embed\.proj\.bias"),
        same(_BLOCK),
        same(r"(?:fc_norm|norm|head)\.(?:weight|bias)"),
        same(r"pos_embed"),
    ),
)
