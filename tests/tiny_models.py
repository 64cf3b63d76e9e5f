"""Random Hugging Face models of a few thousand weights with a byte tokenizer, saved as folders."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.utils import logging

logging.disable_progress_bar()

N_LAYERS, D_MODEL, VOCABULARY = 3, 16, 257
EOS = 256
_SHAPE = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}
_SHAPE |= {"intermediate_size": 32, "max_position_embeddings": 128, "vocab_size": VOCABULARY}
_SPECIAL = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS}
CONFIGS = {
    "llama": LlamaConfig(num_key_value_heads=1, **_SHAPE, **_SPECIAL),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=2,
        n_positions=128,
        **_SPECIAL,
    ),
    "gpt_neox": GPTNeoXConfig(**_SHAPE, **_SPECIAL),
    "gemma2": Gemma2Config(num_key_value_heads=1, head_dim=8, **_SHAPE, **_SPECIAL),
    "gemma3": Gemma3TextConfig(num_key_value_heads=1, head_dim=8, **_SHAPE, **_SPECIAL),
    "qwen3": Qwen3Config(num_key_value_heads=1, head_dim=8, **_SHAPE, **_SPECIAL),
}


def tokenizer(pairs: Sequence[str] = (), **special: str) -> PreTrainedTokenizerFast:
    """One token a byte; ids below 256 are bytes in the alphabet's order, then ``<eos>``, then
    ``pairs`` of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = {symbol: i for i, symbol in enumerate([*alphabet, "<eos>", *pairs])}
    backend = Tokenizer(BPE(symbols, [(a, b) for a, b in pairs]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def save(folder: Path, kind: str = "llama", **special: str) -> Path:
    """A random model of ``kind`` in ``folder``, with a tokenizer that has EOS and no BOS."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(folder)
    tokenizer(**(special or {"eos_token": "<eos>"})).save_pretrained(folder)
    return folder
