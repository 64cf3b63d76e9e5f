"""The activation store: residual vectors of a world's text at one layer, on disk.

``harvest`` writes it, ``ActivationStore`` reads it, ``Sampler`` shuffles it; ``layout`` says what
its files hold.
"""

from tsae.store.reading import ActivationStore, Batch
from tsae.store.sampling import Sampler
from tsae.store.writing import harvest

__all__ = ["ActivationStore", "Batch", "Sampler", "harvest"]
