"""How settings published for 352,000 steps follow the length of a run; docs/short-runs.md explains each.

A run is ``factor`` times as long as the one that its settings are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnew.recipe import Recipe

# CIFAR's published phase 2: 1000 epochs of 352 steps. The course of BNEW's λ, mirror descent's last β, which
# grows by 1.01 an epoch, and Bop's γ and τ.
PUBLISHED_STEPS = 352_000
RAMP = 1.0
BETA_END = 1.01**1000
GAMMA, TAU = 1e-4, 1e-8

# The settings of methods outside of the paper, as their authors' code has them. ProxQuant's strength is that
# of 300 epochs of 391 steps, whose λ grows by 0.01 · 1e-4 an epoch.
BOP2ND = {
    "gamma": 1e-2,
    "gamma_end": 1e-5,
    "sigma": 1e-7,
    "sigma_end": 1e-2,
    "tau": 1e-5,
    "tau_end": 1e-8,
}
PROXQUANT_STRENGTH = round(0.01 * 1e-4 * 300 / 2 * 300 * 391, 1)
PROXPARQ = {"anneal_start": 0.0, "anneal_end": 0.75, "steepness": 10.0}
DIODE = {"beta1": 0.99, "beta2": 0.9999, "start": 10.0}

# The push that takes nearly all weights to ±1, the latest ramp, the mean magnitude of the weights that
# CIFAR's published phase 2 starts from, and the highest rate of binary weights.
LEAST_PUSH = 9.0
MOST_RAMP = 4.0
FILL = 0.54
MOST_BINARY_LR = 8.0


def share_of_published(total_steps: int, published: int = PUBLISHED_STEPS) -> float:
    """The factor of a run of ``total_steps``; 1 for all that are longer than the published one."""
    return min(total_steps / published, 1.0)


def scale_ramp(factor: float, ramp: float = RAMP) -> float:
    """``ramp · factor^−0.3``, at most 4: the push comes late: weights stop changing sign long before ±1."""
    return _grown(ramp, math.pow(factor, -0.3), MOST_RAMP)


def least_strength(ramp: float, freeze_at: float = 1.0) -> float:
    """The strength whose push up to the share ``freeze_at`` of the run takes nearly all weights to ±1.

    λ grows with the power ``ramp`` of the share s of the run that is done, and so the push up to then is
    s^(ramp + 1) of the whole.
    """
    return round(LEAST_PUSH / math.pow(freeze_at, ramp + 1), 1)


@dataclass(frozen=True)
class Published:
    """A published push of BNEW, and what becomes of it in a run that is ``factor`` times as long."""

    steps: int
    strength: float
    to_one: bool
    """Whether it takes the weights to ±1; else they are signed with a scale at the end."""

    def scale_strength(
        self, factor: float, ramp: float, freeze_at: float = 1.0, strength: float | None = None
    ) -> float:
        """``strength · factor^0.3``, but no less than :func:`least_strength`, unless what is given is.

        Where the weights are signed with a scale, ``least + (strength − least) · factor^0.3``: the long run's
        own steps take them most of the way, a short one's do not.
        """
        strength = self.strength if strength is None else strength
        least = least_strength(ramp, freeze_at)
        if not self.to_one:
            return least + (strength - least) * math.pow(min(factor, 1.0), 0.3)
        return max(strength * math.pow(factor, 0.3), min(strength, least))

    def scale_fill(self, factor: float) -> float | None:
        """0.54 in a short run, whose phase 1 is short too and leaves small weights; None in a long one."""
        return FILL if self.to_one and factor < 1 else None

    def scale_binary_lr(self, factor: float, binary_lr: float = 1.0) -> float:
        """``binary_lr · factor^−0.4``, at most 8: weights that fill [−1, 1] take larger steps to turn."""
        return _grown(binary_lr, math.pow(factor, -0.4), MOST_BINARY_LR) if self.to_one else binary_lr


# λ = 1e-4 over CIFAR's 1000 epochs, and λ = 1e-6 over ImageNet's 401 of 5,824 steps: Σ 2 λ_t = λ (T + 1).
CIFAR_PUSH = Published(PUBLISHED_STEPS, round(1e-4 * (PUBLISHED_STEPS + 1), 3), to_one=True)
IMAGENET_PUSH = Published(401 * 5824, 1e-6 * (401 * 5824 + 1), to_one=False)


def published_push(scale: bool, freeze_at: float) -> Published:
    """ImageNet's for weights that are signed with a scale and never frozen, else CIFAR's."""
    return IMAGENET_PUSH if scale and freeze_at == 1 else CIFAR_PUSH


def scale_gamma(factor: float, gamma: float = GAMMA) -> float:
    """``gamma · factor^−1/2``, at most 1: Bop's average spans a larger share of the run."""
    return min(gamma * math.pow(factor, -0.5), 1.0)


def scale_tau(factor: float, tau: float = TAU) -> float:
    """``tau · factor^−0.9``: Bop's threshold keeps the first signs until the average is one."""
    return tau * math.pow(factor, -0.9)


def _grown(given: float, times: float, most: float) -> float:
    """``given`` times ``times``, but at most ``most``, and not below 1, unless what is given is."""
    return min(max(given * times, min(given, 1.0)), max(given, most))


# ---------------------------------------------------------------------- recipes


def scale_bnew(recipe: Recipe, factor: float) -> dict[str, Any]:
    """The fields of a recipe of BNEW that change when it gets ``factor`` times as many steps."""
    options = recipe.method_options
    if "reg" in options:
        return {"method_options": {**options, "reg": options["reg"] * factor**-0.7}}
    published = published_push(bool(options.get("scale")), 1.0 if recipe.freeze == 1 else recipe.freeze_at)
    ramp = scale_ramp(factor, options.get("ramp", RAMP))
    strength = published.scale_strength(factor, ramp, recipe.freeze_at, options.get("strength"))
    scaled = {**options, "ramp": ramp, "strength": strength}
    if fill := published.scale_fill(factor):
        scaled.setdefault("fill", fill)
    if not published.to_one:
        return {"method_options": scaled}
    binary_lr = 1.0 if recipe.binary_lr is None else recipe.binary_lr
    return {"method_options": scaled, "binary_lr": published.scale_binary_lr(factor, binary_lr)}


def scale_bop(recipe: Recipe, factor: float) -> dict[str, Any]:
    """The same of a recipe of Bop."""
    gamma, tau = recipe.method_options.get("gamma", GAMMA), recipe.method_options.get("tau", TAU)
    scaled = {"gamma": scale_gamma(factor, gamma), "tau": scale_tau(factor, tau)}
    return {"method_options": {**recipe.method_options, **scaled}}
