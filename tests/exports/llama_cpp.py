"""llama.cpp through the low-level binding of llama-cpp-python: a tiny Llama as GGUF, and its logits when steered."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers import PreTrainedModel


def write_llama(model: PreTrainedModel, path: Path) -> Path:
    """A Llama's weights as llama.cpp wants them, in float32, without a vocabulary."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    weights = model.state_dict()
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", weights["lm_head.weight"].numpy())
    for block in range(config.num_hidden_layers):
        for name, theirs in _NAMES.items():
            tensor = weights[f"model.layers.{block}.{name}.weight"]
            if theirs in ("attn_q", "attn_k"):
                tensor = _interleaved(tensor, config.head_dim)
            writer.add_tensor(f"blk.{block}.{theirs}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _interleaved(weights: Tensor, head_dim: int) -> Tensor:
    """Rows of a head in the order of llama.cpp's rotary pairs: neighbours instead of halves."""
    n_heads = weights.shape[0] // head_dim
    return weights.view(n_heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(weights.shape)


def logits(path: Path, ids: Sequence[int], vectors: Mapping[int, Any] | None = None) -> Tensor:
    """Next-token logits at every token, [seq_len, vocab_size], under what a control vector file adds by block."""
    import llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    assert model, "llama.cpp loads the model"
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 64, 64, 1, 1
    context = lib.llama_init_from_model(model, params)
    try:
        if vectors:
            _apply(lib, model, context, vectors)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
        assert lib.llama_decode(context, batch) == 0
        n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (n_vocab,)) for i in range(len(ids))]
        return torch.from_numpy(np.stack(rows).copy())
    finally:
        lib.llama_free(context)
        lib.llama_model_free(model)


def _apply(lib: Any, model: Any, context: Any, vectors: Mapping[int, Any]) -> None:
    """As llama.cpp's own loader does: a buffer whose first row is that of block 1."""
    width, n_layers = lib.llama_model_n_embd(model), lib.llama_model_n_layer(model)
    buffer = np.zeros((n_layers - 1, width), dtype=np.float32)
    for block, vector in vectors.items():
        buffer[block - 1] = vector
    pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    name = next(n for n in ("llama_set_adapter_cvec", "llama_apply_adapter_cvec") if hasattr(lib, n))
    assert getattr(lib, name)(context, pointer, buffer.size, width, 1, n_layers - 1) == 0
