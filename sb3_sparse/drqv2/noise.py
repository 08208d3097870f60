"""Noise on actions that shrinks as training goes on (DrQ-v2, section 3.1)."""

import torch as th

# Actions stay this far inside of their bounds.
MARGIN = 1e-6


def noisy_actions(means: th.Tensor, std: float, clip: float | None = None) -> th.Tensor:
    """
    Actions around their means, inside of [-1, 1]; their gradient is that of the means, also where the bounds cut them.

    :param means: ``(batch, n_actions)``, in [-1, 1].
    :param std: Standard deviation of the noise.
    :param clip: The noise is cut off at plus and minus this. None: it is not.
    """
    noise = th.randn_like(means) * std
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    actions = means + noise
    # The difference is zero; it has the gradient that the bounds would take away.
    return actions.clamp(MARGIN - 1, 1 - MARGIN).detach() + (actions - actions.detach())
