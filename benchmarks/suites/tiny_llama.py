"""A real tiny Llama, read from llama2.c's files and written as a folder of transformers with its tokenizer."""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path

import numpy as np
import torch

from mergecore.architectures.hub_transformers import quiet_transformers

LAYERS = {
    "self_attn.q_proj": "wq",
    "self_attn.k_proj": "wk",
    "self_attn.v_proj": "wv",
    "self_attn.o_proj": "wo",
    "mlp.gate_proj": "w1",
    "mlp.down_proj": "w2",
    "mlp.up_proj": "w3",
    "input_layernorm": "rms_att",
    "post_attention_layernorm": "rms_ffn",
}


def read_tokens(file: Path) -> list[tuple[float, bytes]]:
    """Score and bytes of every token."""
    raw, place, found = file.read_bytes(), 4, []
    while place < len(raw):
        score, length = struct.unpack_from("<fi", raw, place)
        found.append((score, raw[place + 8 : place + 8 + length]))
        place += 8 + length
    return found


def encode(tokens: list[tuple[float, bytes]], text: str) -> list[int]:
    """llama2.c's own way: characters, or bytes for unknown ones, merged pair by pair, the best score first."""
    numbers = {token: number for number, (_, token) in enumerate(tokens)}
    found: list[int] = []
    for character in " " + text:
        own = character.encode()
        found += [numbers[own]] if own in numbers else [byte + 3 for byte in own]
    while True:
        pairs = [tokens[a][1] + tokens[b][1] for a, b in itertools.pairwise(found)]
        known = [(tokens[numbers[pair]][0], -place) for place, pair in enumerate(pairs) if pair in numbers]
        if not known:
            return found
        place = -max(known)[1]
        found[place : place + 2] = [numbers[pairs[place]]]


def write_llama(source: Path, folder: Path) -> torch.nn.Module:
    """The network, also as a folder with its tokenizer.

    Args:
        source: the folder of aidreams260K.npz and tok512.bin.
        folder: where config, weights and tokenizer go.
    """
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    with np.load(source / "aidreams260K.npz", allow_pickle=False) as archive:
        arrays = {name: torch.from_numpy(array) for name, array in archive.items()}
    width, hidden, layers, heads, _, rows, positions = arrays["config_dim_hidden_layers_heads_kv_vocab_seq"].tolist()
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=rows,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    state = {"model.embed_tokens.weight": arrays["tok_embeddings"], "model.norm.weight": arrays["rms_final"]}
    for layer in range(layers):
        for name, other in LAYERS.items():
            tensor = arrays[other][layer]
            if other in ("wq", "wk"):  # rotary pairs are neighbours there, half a head apart here
                tensor = tensor.view(heads, width // heads // 2, 2, width).transpose(1, 2).reshape(width, width)
            state[f"model.layers.{layer}.{name}.weight"] = tensor
    module = LlamaForCausalLM(config).eval()
    module.load_state_dict(state | {"lm_head.weight": arrays["tok_embeddings"]})

    pieces = [token.decode("utf-8") for _, token in read_tokens(source / "tok512.bin")]
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[3:]
        if not re.fullmatch(r"<0x[0-9A-F]{2}>", piece)
        for cut in range(1, len(piece))
        if piece[:cut] in numbers and piece[cut:] in numbers
    ]
    tokenizer = Tokenizer(BPE(numbers, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    with quiet_transformers():
        module.save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
        ).save_pretrained(folder)
    return module
