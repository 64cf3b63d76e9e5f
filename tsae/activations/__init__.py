"""The activation store: residual vectors of a world's text at one layer, on disk.

``harvest`` writes it, ``ActivationStore`` reads it, ``Sampler`` shuffles it; ``layout`` says what
its files hold.
"""

from tsae.activations.reading import ActivationStore, Batch
from tsae.activations.sampling import Sampler
from tsae.activations.writing import harvest

__all__ = ["ActivationStore", "Batch", "Sampler", "harvest"]
