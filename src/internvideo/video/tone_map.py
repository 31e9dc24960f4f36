"""Tone-map high dynamic range to BT.709: PQ and HLG frames with BT.2020 primaries (ITU-R BT.2100).

Luminance is computed in cd/m2 for a display of `PEAK`, compressed to `WHITE` by the curve of Report ITU-R BT.2390
(5.4, black at 0), converted from BT.2020's primaries to BT.709's (Report ITU-R BT.2087), clipped to their gamut, and
encoded for a display of BT.1886 (gamma 2.4). The curve is evaluated at the maximum of red, green and blue and scales
all three, which preserves the hue. The peak is fixed; mastering metadata of the file is not used, so that equal pixels
are mapped to equal pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

PEAK = 1000.0
"""Peak luminance, cd/m2, of the display for HLG and PQ; higher values are clipped to it."""

WHITE = 100.0
"""White of the standard-dynamic-range display, cd/m2."""

KINDS = {16: "pq", 18: "hlg"}
"""Transfer characteristics (numbers of ITU-T H.273) of high dynamic range."""

Light = NDArray[np.float32]

# BT.2100, table 4: PQ. Table 5: HLG.
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
_A, _B, _C = 0.17883277, 0.28466892, 0.55991073
_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # BT.2087, M2


def tone_mapped(codes: NDArray[np.uint16], kind: str, *, wide: bool = True) -> NDArray[np.uint8]:
    """Convert (H, W, 3) uint16 full-range R'G'B' of a `kind` of `KINDS` to (H, W, 3) uint8 BT.709.

    Args:
        wide: the primaries are those of BT.2020; otherwise they are not converted.
    """
    light = _linear(kind)[codes]
    if kind == "hlg":  # from the scene's light to the display's, system gamma 1.2
        luminance = np.maximum(light @ _LUMA, 1e-9)[..., None]
        light = PEAK * luminance**0.2 * light
    largest = np.maximum(light.max(-1, keepdims=True), 1e-6)
    light = light * (compressed(largest) / (largest * WHITE))
    if wide:
        light = light @ _TO_709.T
    shown: NDArray[np.uint8] = np.rint(255 * np.clip(light, 0, 1) ** (1 / 2.4)).astype(np.uint8)
    return shown


@cache
def _linear(kind: str) -> Light:
    """Return (65536,) light per code value: cd/m2 for PQ, scene light in [0, 1] for HLG."""
    signal = np.linspace(0, 1, 2**16)
    if kind == "pq":
        return pq_light(signal).astype(np.float32)
    low, high = signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12
    return np.where(signal <= 0.5, low, high).astype(np.float32)


def pq_light(signal: NDArray[np.floating]) -> NDArray[np.floating]:
    """Convert a PQ signal in [0, 1] to cd/m2 (BT.2100's EOTF)."""
    root = signal ** (1 / _M2)
    light: NDArray[np.floating] = 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)
    return light


def pq_signal(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Convert cd/m2 to a PQ signal in [0, 1]."""
    power = (light / 10000) ** _M1
    signal: NDArray[np.floating] = ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
    return signal


def compressed(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Compress cd/m2 up to `PEAK` to up to `WHITE`: identity below a knee, Hermite spline of the PQ signal above."""
    ends = pq_signal(np.array([WHITE, PEAK]))
    top = ends[0] / ends[1]
    knee = 1.5 * top - 0.5
    signal = np.minimum(pq_signal(light) / ends[1], 1)
    t = np.maximum(signal - knee, 0) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    return np.where(signal < knee, light, pq_light(bent * ends[1]))
