"""Tiny Hugging Face models made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quantvane.types import Window

TEXT = "the quick brown fox jumps over the lazy dog\nand the dog barks at the fox, the brown one\n" * 3
VOCAB = 300

_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    # the default, 0.02, gives logits so flat that a soft cap or a scale would hardly show
    "initializer_range": 0.3,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 7.0},
    "cohere": {"logit_scale": 0.25},
    "phi": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3},
}


def make_tiny(folder: Path, architecture: str = "llama", *, tie: bool = False, bos: bool = True) -> Path:
    """A random model of two layers, d = 64, V = 300 (over a smaller tokenizer), saved under ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place = folder / architecture
    sizes = {} if architecture == "gpt2" else _SIZES
    tied = {"tie_word_embeddings": True} if tie else {}
    config = AutoConfig.for_model(architecture, **_COMMON, **sizes, **_OWN[architecture], **tied)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)  # made as zeros, which no test would miss
    model.save_pretrained(str(place))
    _tokenizer(bos).save_pretrained(str(place))
    return place


def _tokenizer(bos: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 10,
        special_tokens=["<|start|>", "<|end|>", "<|mark|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", 0)]
        )
    names: dict[str, Any] = {"bos_token": "<|start|>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", additional_special_tokens=["<|mark|>"], **names
    )


def window(tokens: np.ndarray, scored: np.ndarray, index: int) -> Window:
    """A window over given tokens; the last position is never scored."""
    fed = np.asarray(tokens, np.int32)
    mask = np.array(scored, bool)
    if len(mask):
        mask[-1] = False
    return Window(fed, np.append(fed[1:], 0).astype(np.int32), mask, index, 0, 0)
