"""Drawings of the synthetic cohort: chest-film-like and skin-like images, and the trace a sensitive attribute leaves in them.

Everything is drawn on the square [-1, 1] x [-1, 1] (x to the right, y down), so that 64 px and 224 px images show the same
scene. A drawing is made in two steps: the scene (anatomy, disease, optics) and then the trace. An image and its
counterfactual twin share the scene and the sensor noise to the last bit and differ in the trace alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.random import generator

Field = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
CHUNK = 128  # images drawn at once; fixed, because the noise streams are numbered by chunk
CHANNELS = {"chest": 1, "skin": 3}
_SENSOR_NOISE = {"chest": 0.02, "skin": 0.012}


class Draws:
    """Random parameters of n images: each is shared by a patient's images up to a small change from image to image."""

    def __init__(self, seed: int, patient: Integers, n_patients: int) -> None:
        self._seed, self._patient, self._n_patients = seed, patient, n_patients

    def uniform(self, name: str, low: float, high: float, jitter: float = 0.1) -> Field:
        """float32 (n, 1, 1): uniform in [low, high] over patients, plus normal jitter of ``jitter * (high - low)`` per image."""
        rng = generator(self._seed, "scene", name)
        base = rng.uniform(low, high, self._n_patients)[self._patient]
        value = base + rng.normal(0.0, jitter * (high - low), len(self._patient))
        return np.asarray(value, np.float32)[:, None, None]

    def choice(self, name: str, weights: Sequence[float]) -> Field:
        """float32 (n, 1, 1): an integer 0, 1, … per patient, drawn with the given weights."""
        value = generator(self._seed, "scene", name).choice(len(weights), size=self._n_patients, p=np.asarray(weights))
        return value[self._patient].astype(np.float32)[:, None, None]


def ramp(value: Field, width: float) -> Field:
    """0 below -width/2, 1 above width/2, linear between: the soft edge of every shape."""
    return np.asarray(np.clip(value / np.float32(width) + np.float32(0.5), 0.0, 1.0))


def bump(squared_distance: Field) -> Field:
    """exp(-d^2): 1 in the middle, smooth, no edge."""
    return np.asarray(np.exp(-squared_distance))


def grid(size: int) -> tuple[Field, Field]:
    """Pixel centres: x as (1, 1, size) and y as (1, size, 1), float32 in (-1, 1)."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def smooth_noise(rng: np.random.Generator, n: int, knots: int, size: int) -> Field:
    """Noise of unit variance at its knots, ``knots`` x ``knots`` of them, interpolated linearly to (n, size, size)."""
    position = np.linspace(0, knots - 1, size)
    weight = np.clip(1 - np.abs(position[:, None] - np.arange(knots)[None, :]), 0, 1).astype(np.float32)
    return np.asarray(weight @ rng.standard_normal((n, knots, knots), dtype=np.float32) @ weight.T, np.float32)


class Chest:
    """Parameters of chest-film-like scenes: a thorax with two dark lungs, ribs, spine, heart, clavicles; disease is 1 to 3 opacities."""

    def __init__(self, draws: Draws) -> None:
        self.shift_x = draws.uniform("shift_x", -0.05, 0.05, 0.3)
        self.shift_y = draws.uniform("shift_y", -0.06, 0.06, 0.3)
        self.width = draws.uniform("width", 0.88, 1.08, 0.05)
        self.lung_height = draws.uniform("lung_height", 0.60, 0.74, 0.1)
        self.dome = draws.uniform("dome", 0.40, 0.56, 0.1)
        self.heart = draws.uniform("heart", 0.21, 0.31, 0.05)
        self.rib_phase = draws.uniform("rib_phase", 0.0, 1.0, 0.02)
        self.rib_rate = draws.uniform("rib_rate", 4.0, 4.8, 0.02)
        self.gamma = draws.uniform("gamma", 0.85, 1.2, 0.2)
        self.gain = draws.uniform("gain", 0.88, 1.06, 0.2)
        self.n_opacities = 1 + draws.choice("n_opacities", (0.35, 0.4, 0.25))
        self.n_nodules = draws.choice("n_nodules", (0.3, 0.4, 0.3))
        self.opacities = [
            {
                "side": 2 * draws.choice(f"side{k}", (0.5, 0.5)) - 1,
                "x": draws.uniform(f"opacity_x{k}", -0.16, 0.16),
                "y": draws.uniform(f"opacity_y{k}", -0.42, 0.34),
                "radius": draws.uniform(f"opacity_radius{k}", 0.10, 0.20),
                "depth": draws.uniform(f"opacity_depth{k}", 0.10, 0.30),
            }
            for k in range(3)
        ]
        self.nodules = [
            {
                "side": 2 * draws.choice(f"nodule_side{k}", (0.5, 0.5)) - 1,
                "x": draws.uniform(f"nodule_x{k}", -0.2, 0.2),
                "y": draws.uniform(f"nodule_y{k}", -0.5, 0.4),
            }
            for k in range(2)
        ]

    def scene(self, rows: slice, disease: Field, signal: float, size: int, rng: np.random.Generator) -> Field:
        """Scenes of some images, float32 (n, 1, size, size) in about [0, 1]; ``disease`` is 0/1 (n, 1, 1)."""
        x, y = grid(size)
        x = (x - self.shift_x[rows]) / self.width[rows]
        y = y - self.shift_y[rows]
        n = len(disease)
        side = np.abs(x)
        body = ramp(1 - (x / 0.97) ** 2 - np.clip(-(y + 0.55), 0, None) ** 2 * (1.2 + 3 * side**2), 0.12)
        heart = self._heart(rows, x, y)
        lungs = self._lungs(rows, side, y) * (1 - 0.95 * heart)
        cloud = smooth_noise(rng, n, 14, size)
        film = body * (0.60 + 0.05 * smooth_noise(rng, n, 4, size)) - lungs * (0.40 + 0.025 * cloud)
        film = film + heart * 0.10 + body * self._bones(rows, x, y, side, lungs)
        film = film + lungs * self._opacities(rows, x, y, disease * np.float32(signal)) * (0.9 + 0.35 * cloud)
        film = np.clip(film, 0, 1.2) ** self.gamma[rows] * self.gain[rows] + 0.03
        return np.asarray(film, np.float32)[:, None]

    def _heart(self, rows: slice, x: Field, y: Field) -> Field:
        radius = self.heart[rows]
        muscle = ramp(1 - ((x - 0.11) / radius) ** 2 - ((y - 0.24 - 0.25 * (x - 0.11)) / (radius * 0.95)) ** 2, 0.35)
        vessels = ramp(0.10 - np.abs(x - 0.01) + 0.03 * y, 0.06)
        return np.maximum(muscle, vessels)

    def _lungs(self, rows: slice, side: Field, y: Field) -> Field:
        height = self.lung_height[rows]
        across = (side - 0.43) / (0.30 + 0.07 * np.clip(y, -1, 1))
        oval = ramp(1 - np.abs(across) ** 2.4 - np.abs((y + 0.06) / height) ** 2.4, 0.35)
        dome = self.dome[rows] + 0.9 * (side - 0.42) ** 2 + 0.25 * np.clip(side - 0.42, 0, None)
        return oval * ramp(dome - y, 0.07)

    def _bones(self, rows: slice, x: Field, y: Field, side: Field, lungs: Field) -> Field:
        arch = y + 0.55 * (side - 0.35) ** 2 - 0.22 * side
        ribs = np.clip(np.cos(2 * np.pi * (self.rib_rate[rows] * arch + self.rib_phase[rows])) - 0.25, 0, None)
        spine = bump((x / 0.085) ** 2) * (0.07 + 0.025 * np.cos(2 * np.pi * 5.5 * y))
        collar = bump(((y + 0.66 - 0.22 * (side - 0.1)) / 0.045) ** 2) * ramp(0.72 - side, 0.1) * ramp(side - 0.1, 0.06)
        return np.asarray(0.13 * ribs * (0.15 + 0.85 * lungs) + spine + 0.13 * collar, np.float32)

    def _opacities(self, rows: slice, x: Field, y: Field, strength: Field) -> Field:
        total = np.zeros((len(strength), y.shape[1], x.shape[2]), np.float32)
        for k, spot in enumerate(self.opacities):
            s = {key: value[rows] for key, value in spot.items()}
            shown = strength * s["depth"] * (self.n_opacities[rows] > k)
            total += shown * bump(((x - s["side"] * 0.43 - s["x"]) ** 2 + (y - s["y"]) ** 2) / s["radius"] ** 2)
        for k, spot in enumerate(self.nodules):  # vessels seen end-on: in healthy and diseased alike
            s = {key: value[rows] for key, value in spot.items()}
            near = ((x - s["side"] * 0.36 - s["x"]) ** 2 + (y - s["y"]) ** 2) / 0.045**2
            total += np.float32(0.16) * (self.n_nodules[rows] > k) * bump(near)
        return total


class Skin:
    """Parameters of skin-like scenes: one pigmented lesion and some hairs; disease makes border, colour and network irregular."""

    def __init__(self, draws: Draws) -> None:
        self.shift_x = draws.uniform("shift_x", -0.12, 0.12, 0.2)
        self.shift_y = draws.uniform("shift_y", -0.12, 0.12, 0.2)
        self.radius = draws.uniform("radius", 0.34, 0.56, 0.05)
        self.oval = draws.uniform("oval", -0.12, 0.12, 0.05)
        self.tone = draws.uniform("tone", 0.0, 1.0, 0.05)
        self.pigment = draws.uniform("pigment", 0.45, 0.85, 0.05)
        self.gain = draws.uniform("gain", 0.92, 1.06, 0.3)
        self.ragged = draws.uniform("ragged", 0.03, 0.10, 0.05)
        self.blotch = draws.uniform("blotch", 0.05, 0.14, 0.05)
        self.angle = draws.uniform("angle", 0.0, np.pi, 0.02)
        self.waves = [draws.uniform(f"wave{k}", 0.0, 2 * np.pi, 0.01) for k in range(5)]
        self.mesh = draws.uniform("mesh", 0.0, 0.07, 0.05)
        self.mesh_ill = draws.uniform("mesh_ill", 0.0, 0.12, 0.05)
        self.n_hairs = draws.choice("n_hairs", (0.4, 0.2, 0.2, 0.1, 0.1))
        self.hairs = [(draws.uniform(f"hair_at{k}", -0.9, 0.9), draws.uniform(f"hair_angle{k}", 0, np.pi)) for k in range(4)]

    def scene(self, rows: slice, disease: Field, signal: float, size: int, rng: np.random.Generator) -> Field:
        """Scenes of some images, float32 (n, 3, size, size) in about [0, 1]; ``disease`` is 0/1 (n, 1, 1)."""
        x0, y0 = grid(size)
        x, y = x0 - self.shift_x[rows], y0 - self.shift_y[rows]
        n, ill = len(disease), disease * np.float32(signal)
        inside = self._lesion(rows, x, y, ill)
        blotches = smooth_noise(rng, n, 7, size)
        warp = 0.05 * smooth_noise(rng, n, 6, size)
        network = self._network(rows, x + warp, y - warp) * inside * (self.mesh[rows] + ill * self.mesh_ill[rows])
        dark = inside * (self.pigment[rows] + blotches * (self.blotch[rows] + 0.09 * ill)) + network
        dark = np.clip(dark + 0.05 * smooth_noise(rng, n, 20, size) * inside, 0, 1.1)
        light = (1 - 0.10 * (x0**2 + y0**2)) * self.gain[rows] * (1 + 0.03 * smooth_noise(rng, n, 5, size))
        light = light * (1 - 0.75 * self._hairs(rows, x0, y0))
        skin = np.array([[0.93, 0.76, 0.68], [0.80, 0.60, 0.49]], np.float32)
        mole = np.array([0.34, 0.19, 0.13], np.float32)
        image = np.empty((n, 3, size, size), np.float32)
        for c in range(3):
            ground = skin[0, c] + (skin[1, c] - skin[0, c]) * self.tone[rows]
            image[:, c] = (ground + (mole[c] - ground) * dark) * light
        image[:, 2] += 0.10 * ill * np.clip(blotches - 0.6, 0, None) * inside  # blue-white areas
        return image

    def _lesion(self, rows: slice, x: Field, y: Field, ill: Field) -> Field:
        angle = np.arctan2(y, x)
        ragged = self.ragged[rows] + 0.06 * ill
        edge = 1 + self.oval[rows] * np.cos(2 * (angle - self.angle[rows]))
        for k, wave in enumerate(self.waves):
            edge = edge + ragged * np.float32(1.2 / (k + 2)) * np.cos((k + 2) * angle + wave[rows])
        return ramp(edge - np.sqrt(x**2 + y**2) / self.radius[rows], 0.22)

    def _network(self, rows: slice, x: Field, y: Field) -> Field:
        cos, sin = np.cos(self.angle[rows]), np.sin(self.angle[rows])
        along, across = cos * x + sin * y, cos * y - sin * x
        return np.asarray(np.cos(2 * np.pi * 6.5 * along) * np.cos(2 * np.pi * 6.5 * across), np.float32)

    def _hairs(self, rows: slice, x: Field, y: Field) -> Field:
        total = np.zeros((len(self.n_hairs[rows]), y.shape[1], x.shape[2]), np.float32)
        for k, (at, angle) in enumerate(self.hairs):
            cos, sin = np.cos(angle[rows]), np.sin(angle[rows])
            bend = 0.15 * (cos * y - sin * x) ** 2
            thin = bump(((cos * x + sin * y + bend - at[rows]) / 0.018) ** 2)
            total = np.maximum(total, thin * (self.n_hairs[rows] > k))
        return total


class Trace:
    """What the sensitive attribute leaves in an image: any of ``texture``, ``marker``, ``intensity``, each scaled by ``strength``.

    - texture: fine oblique lines over the whole image, as of a grid or a screen (10 cycles across).
    - marker: a bright L in an upper corner (chest), a blue round sticker in a corner (skin).
    - intensity: a brighter exposure (chest), a darker skin (skin).
    """

    def __init__(self, draws: Draws, kind: str, shortcuts: Sequence[str], strength: float) -> None:
        self.kind, self.shortcuts, self.strength = kind, tuple(shortcuts), np.float32(strength)
        self.phase = draws.uniform("trace_phase", 0.0, 1.0, 1.0)
        self.side = 2 * draws.choice("trace_side", (0.5, 0.5)) - 1
        self.x = draws.uniform("trace_x", 0.74, 0.82, 0.3)
        self.y = draws.uniform("trace_y", -0.84, -0.76, 0.3)

    def apply(self, scene: Field, carried: npt.NDArray[np.bool_], rows: slice) -> Field:
        """Scenes (n, c, h, w) with the trace where ``carried`` (n,); a new array, the others unchanged."""
        on = carried.astype(np.float32)[:, None, None] * self.strength
        out = scene.copy()
        if "intensity" in self.shortcuts:
            change = -0.10 if self.kind == "skin" else 0.08
            out += np.float32(change) * on[:, None]
        if "texture" in self.shortcuts:
            x, y = grid(scene.shape[-1])
            lines = np.cos(2 * np.pi * (5.0 * (0.6 * x + 0.8 * y) * 1.6 + self.phase[rows]))
            out += np.float32(0.035) * (on * lines)[:, None]
        if "marker" in self.shortcuts:
            self._draw_marker(out, np.clip(on, 0, 1), rows)
        return out

    def _draw_marker(self, out: Field, alpha: Field, rows: slice) -> None:
        x, y = grid(out.shape[-1])
        x, y = self.side[rows] * x - self.x[rows], y - self.y[rows]
        if self.kind == "skin":
            shape, colour = ramp(0.15 - np.sqrt(x**2 + y**2), 0.05), [0.20, 0.45, 0.75]
        else:
            stem = ramp(0.035 - np.abs(x + 0.05), 0.04) * ramp(0.12 - np.abs(y), 0.04)
            foot = ramp(0.035 - np.abs(y - 0.09), 0.04) * ramp(0.085 - np.abs(x), 0.04)
            shape, colour = np.maximum(stem, foot), [0.97]
        for c, value in enumerate(colour):
            out[:, c] += alpha * shape * (np.float32(value) - out[:, c])


def draw_pairs(
    *,
    kind: str,
    size: int,
    patient: Integers,
    disease: npt.NDArray[np.bool_],
    carried: npt.NDArray[np.bool_],
    signal: float,
    shortcuts: Sequence[str],
    strength: float,
    seed: int,
    twins: bool = True,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw n images and, with the same scene and noise but the other trace, their twins.

    Args:
        kind: "chest" (one channel) or "skin" (three).
        size: height and width, pixels.
        patient: (n,) patient codes 0, 1, …; images of one patient look alike.
        disease: (n,) whether the disease is shown.
        carried: (n,) whether the trace is shown; the twin shows it exactly where the image does not.
        signal: multiplies what the disease changes; 0 makes it invisible.
        shortcuts: any of "texture", "marker", "intensity".
        strength: multiplies what the trace changes; 0 makes it invisible.
        seed: of every random stream.
        twins: False leaves the second array empty.

    Returns:
        Images and twins, uint8 (n, c, size, size); twins have n = 0 when not asked for.
    """
    n, channels = len(patient), CHANNELS[kind]
    draws = Draws(seed, patient, int(patient.max()) + 1 if n else 0)
    painter = Chest(draws) if kind == "chest" else Skin(draws)
    trace = Trace(draws, kind, shortcuts, strength)
    images = np.empty((n, channels, size, size), np.uint8)
    others = np.empty((n if twins else 0, channels, size, size), np.uint8)
    for number, start in enumerate(range(0, n, CHUNK)):
        rows = slice(start, min(start + CHUNK, n))
        rng = generator(seed, "pixels", number)
        ill = disease[rows].astype(np.float32)[:, None, None]
        scene = painter.scene(rows, ill, signal, size, rng)
        noise = rng.standard_normal(scene.shape, dtype=np.float32) * np.float32(_SENSOR_NOISE[kind])
        images[rows] = _to_bytes(trace.apply(scene, carried[rows], rows) + noise)
        if twins:
            others[rows] = _to_bytes(trace.apply(scene, ~carried[rows], rows) + noise)
    return images, others


def _to_bytes(image: Field) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), np.uint8)
