"""Slow, readable twins of the methods: one scalar weight at a time, in plain Python.

They are written from the published facts and share no code with bnew. One optimizer step is one epoch of
the published schedules, so that λ_e, β_e and γ_e below are the paper's own formulas.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sign(x: float) -> float:
    return 1.0 if x >= 0 else -1.0


def clip(x: float) -> float:
    return max(-1.0, min(1.0, x))


def binary(weights: Array, scale: bool) -> Array:
    """±1, or ± the mean magnitude of the output channel."""
    result = np.empty_like(weights)
    for channel, values in enumerate(weights):
        size = sum(abs(x) for x in values.flat) / values.size if scale else 1.0
        for index in np.ndindex(values.shape):
            result[(channel, *index)] = size * sign(values[index])
    return result


# Optimizers of one weight


class Optimizer(Protocol):
    lr: float

    @property
    def average(self) -> float:
        """Of the gradient, as the optimizer keeps it."""
        ...

    def __call__(self, w: float, g: float) -> float:
        """The weight after one step."""
        ...


class Adam:
    """Kingma and Ba, arXiv 1412.6980, with weight decay as a gradient."""

    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.t, self.m, self.v = 0, 0.0, 0.0

    @property
    def average(self) -> float:
        return self.m

    def __call__(self, w: float, g: float) -> float:
        g += self.weight_decay * w
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m_hat = self.m / (1 - 0.9**self.t)
        v_hat = self.v / (1 - 0.999**self.t)
        return w - self.lr * m_hat / (math.sqrt(v_hat) + 1e-8)


class SGD:
    """Nesterov's momentum, 0.9, as PyTorch defines it."""

    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.velocity = 0.0

    @property
    def average(self) -> float:
        return self.velocity

    def __call__(self, w: float, g: float) -> float:
        g += self.weight_decay * w
        self.velocity = 0.9 * self.velocity + g
        return w - self.lr * (g + 0.9 * self.velocity)


# Methods


class Twin:
    """One weight under one method, for ``epochs`` steps.

    ``w`` is what the method keeps, ``value`` what the sign is taken of, ``used`` what the forward pass uses.
    """

    def __init__(self, w: float, optimizer: Optimizer, epochs: int) -> None:
        self.w, self.optimizer, self.epochs = w, optimizer, epochs
        self.epoch = 0
        self.frozen = False

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        """The method's options that say what is written here, quick enough for a few epochs."""
        return {}

    @property
    def value(self) -> float:
        return self.w

    @property
    def used(self) -> float:
        return self.value

    def step(self, g: float) -> None:
        if not self.frozen:
            self.update(g)
        self.epoch += 1

    def update(self, g: float) -> None:
        raise NotImplementedError

    def freeze(self) -> None:
        self.w = sign(self.value)
        self.frozen = True


class Real(Twin):
    def update(self, g: float) -> None:
        self.w = self.optimizer(self.w, g)


class Clip(Twin):
    def update(self, g: float) -> None:
        self.w = clip(self.optimizer(self.w, g))


class BNEW(Twin):
    reg = 0.02

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        return {"reg": cls.reg}

    def update(self, g: float) -> None:
        reg = min(self.reg * (self.epoch + 1) / self.epochs, 1)
        self.w = clip((1 + 2 * reg) * self.optimizer(self.w, g))


class BNEWReopen(BNEW):
    """Its push yields to the average of the gradient."""

    def update(self, g: float) -> None:
        reg = min(self.reg * (self.epoch + 1) / self.epochs, 1)
        w = self.optimizer(self.w, g)
        outwards = self.optimizer.average * w <= 0
        self.w = clip((1 + 2 * reg) * w if outwards else w)


class STE(Twin):
    def update(self, g: float) -> None:
        self.w = clip(self.optimizer(self.w, g))

    @property
    def used(self) -> float:
        return sign(self.w)


class BinaryMirrorDescent(Twin):
    growth = 1.01

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        return {"beta_end": cls.growth**epochs}

    def update(self, g: float) -> None:
        self.w = self.optimizer(self.w, g)

    @property
    def value(self) -> float:
        return self.w if self.frozen else math.tanh(min(self.growth**self.epoch, 1e35) * self.w)


class Bop(Twin):
    gamma, tau = 0.1, 0.02

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        return {"gamma": cls.gamma, "tau": cls.tau}

    def __init__(self, w: float, optimizer: Optimizer, epochs: int) -> None:
        super().__init__(sign(w), optimizer, epochs)
        self.m = 0.0

    def update(self, g: float) -> None:
        gamma = self.gamma * (1 - self.epoch / self.epochs)
        self.m = (1 - gamma) * self.m + gamma * g
        if abs(self.m) > self.tau and sign(self.m) == sign(self.w):
            self.w = -self.w


class Bop2ndOrder(Twin):
    """Its γ, σ and τ go along straight lines from the first number to the last."""

    gammas, sigmas, taus = (0.3, 0.05), (0.1, 0.4), (0.5, 0.2)
    unbiased = False

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        pairs = {"gamma": cls.gammas, "sigma": cls.sigmas, "tau": cls.taus}
        return {name + end: pair[i] for name, pair in pairs.items() for i, end in enumerate(("", "_end"))}

    def __init__(self, w: float, optimizer: Optimizer, epochs: int) -> None:
        super().__init__(sign(w), optimizer, epochs)
        self.m, self.v = 0.0, 0.0

    def update(self, g: float) -> None:
        done = self.epoch / self.epochs
        gamma, sigma, tau = ((1 - done) * a + done * b for a, b in (self.gammas, self.sigmas, self.taus))
        self.m = (1 - gamma) * self.m + gamma * g
        self.v = (1 - sigma) * self.v + sigma * g**2
        m, v = (self.m / gamma, self.v / sigma) if self.unbiased else (self.m, self.v)
        normalised = m / (math.sqrt(v) + 1e-10)
        if abs(normalised) > tau and sign(normalised) == sign(self.w):
            self.w = -self.w


class Bop2ndOrderUnbiased(Bop2ndOrder):
    taus = (2.0, 0.5)
    unbiased = True

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        return {**super().options(epochs), "unbiased": True}


class Diode(Twin):
    """Of first numbers so small that it does not matter how small they are."""

    beta1, beta2, start = 0.7, 0.8, 1e-12

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        return {"beta1": cls.beta1, "beta2": cls.beta2, "start": cls.start}

    def __init__(self, w: float, optimizer: Optimizer, epochs: int) -> None:
        super().__init__(sign(w), optimizer, epochs)
        self.m, self.s = 0.0, -sign(w) * self.start

    def update(self, g: float) -> None:
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.s = self.beta2 * self.s + (1 - self.beta2) * (0.0 if self.m == 0 else sign(self.m))
        self.w = sign(-self.s)


class ProxQuant(Twin):
    """λ_t = λ · t, and the soft threshold towards the nearest of ±1."""

    rate = 0.001

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        return {"strength": sum(cls.rate * t for t in range(1, epochs + 1))}

    def update(self, g: float) -> None:
        w = self.optimizer(self.w, g)
        nearest = sign(w)
        left = max(abs(w - nearest) - self.rate * (self.epoch + 1), 0.0)
        self.w = clip(nearest + left * sign(w - nearest))


class ProxPARQ(Twin):
    first, last, steepness = 0.1, 0.7, 6.0

    @classmethod
    def options(cls, epochs: int) -> dict[str, float]:
        return {"anneal_start": cls.first, "anneal_end": cls.last, "steepness": cls.steepness}

    @classmethod
    def inverse_slope(cls, done: float) -> float:
        """A falling sigmoid, moved and scaled to be 1 at ``first`` and 0 at ``last``."""

        def falling(share: float) -> float:
            return 1 / (1 + math.exp(cls.steepness * (share - 0.5)))

        share = min(max((done - cls.first) / (cls.last - cls.first), 0.0), 1.0)
        return (falling(share) - falling(1)) / (falling(0) - falling(1))

    def update(self, g: float) -> None:
        self.w = self.optimizer(self.w, g)

    @property
    def value(self) -> float:
        if self.frozen:
            return self.w
        s = self.inverse_slope(self.epoch / self.epochs)
        return sign(self.w) if s == 0 else clip(self.w / s)


METHODS: dict[str, type[Twin]] = {
    "real": Real,
    "clip": Clip,
    "bnew": BNEW,
    "ste": STE,
    "bmd": BinaryMirrorDescent,
    "bop": Bop,
    "bop2nd": Bop2ndOrder,
    "diode": Diode,
    "proxquant": ProxQuant,
    "proxparq": ProxPARQ,
}
OPTIMIZERS: dict[str, type[Adam] | type[SGD]] = {"adam": Adam, "sgd": SGD}
