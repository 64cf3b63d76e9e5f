"""A random llama of a few thousand weights in one GGUF file, written field by field."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from tokenizers import pre_tokenizers

N_LAYERS, D_MODEL, D_MLP, N_HEADS, CONTEXT = 2, 32, 64, 2, 128


def write(path: Path) -> Path:
    """One token a byte, the pair "th" and ``<eos>``; weights from seed 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "th", "<eos>"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(D_MODEL // N_HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 1) + [TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    rng = np.random.default_rng(0)

    def put(name: str, *shape: int) -> None:
        values = rng.normal(0, 0.1, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(name, values.astype(np.float32))

    put("token_embd.weight", len(tokens), D_MODEL)
    put("output.weight", len(tokens), D_MODEL)
    put("output_norm.weight", D_MODEL)
    for i in range(N_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            put(f"blk.{i}.{name}.weight", D_MODEL, D_MODEL)
        put(f"blk.{i}.ffn_gate.weight", D_MLP, D_MODEL)
        put(f"blk.{i}.ffn_up.weight", D_MLP, D_MODEL)
        put(f"blk.{i}.ffn_down.weight", D_MODEL, D_MLP)
        put(f"blk.{i}.attn_norm.weight", D_MODEL)
        put(f"blk.{i}.ffn_norm.weight", D_MODEL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
