"""Settings of the microworld."""

from dataclasses import dataclass

from lab.worlds.base import check_wholes, require


@dataclass(frozen=True)
class MicroworldConfig:
    """How much text, how temporal, how large a model, and how well it must know its facts.

    Raises ValueError that names the field, its value and what is allowed.
    """

    seed: int = 0
    """Draws the facts, the documents and the model's first weights."""
    n_train_docs: int = 12_000
    """Documents of about 106 tokens for training."""
    n_test_docs: int = 1_500
    """Documents held out for the test, and as many again for validation."""
    n_entities: int = 16
    """Invented things per subject, 4 to 20; each one more adds 26 facts."""
    temporal: float = 1.0
    """Share of tokens that keep their place in the document; the others are i.i.d. draws, which
    leave the document's and the section's labels as they are.
    """
    n_layers: int = 4
    """Transformer blocks."""
    d_model: int = 128
    """Width of the residual stream; a multiple of 2 × n_heads."""
    n_heads: int = 4
    """Attention heads per block."""
    layer: int = 2
    """Block whose output is read by default."""
    seq_len: int = 128
    """Tokens per sequence, BOS included."""
    steps: int = 700
    """Optimiser steps of the language model."""
    batch_size: int = 16
    """Sequences per step."""
    lr: float = 5e-3
    """Peak learning rate of Muon and AdamW, after a warm-up over the first tenth; then cosine to a
    tenth of it.
    """
    recall_weight: float = 4.0
    """Weight of the loss where a fact's value is called for; other tokens weigh 1."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    option_orders: int = 4
    """Orders in which the options of each question are listed, 1 to 24."""
    min_accuracy: float | None = 0.95
    """What the model must reach on each neighbourhood; None: whatever it reaches."""

    def __post_init__(self) -> None:
        ones = "n_train_docs n_test_docs n_heads n_layers steps batch_size checkpoint_every".split()
        least = {"seed": 0, "n_entities": 4, "d_model": 1, "layer": 0, "seq_len": 48}
        check_wholes(self, dict.fromkeys((*ones, "option_orders"), 1) | least)
        width, accuracy = 2 * self.n_heads, self.min_accuracy
        require(self, "n_entities", self.n_entities <= 20, "4 to 20")
        require(self, "temporal", 0 <= self.temporal <= 1, "0 to 1")
        require(self, "d_model", self.d_model % width == 0, f"a multiple of {width}, 2 × n_heads")
        require(self, "layer", self.layer < self.n_layers, f"0 to {self.n_layers - 1}")
        require(self, "seq_len", self.seq_len % 4 == 0, "a multiple of 4, 48 or more")
        require(self, "lr", self.lr > 0, "more than 0")
        require(self, "recall_weight", self.recall_weight >= 1, "1 or more")
        require(self, "option_orders", self.option_orders <= 24, "1 to 24")
        require(self, "min_accuracy", accuracy is None or 0 <= accuracy <= 1, "None or 0 to 1")
