"""The model "tiny": a Llama with random weights and a tokenizer of bytes, made on the spot, offline.

It knows nothing, and is there to see the whole way from data to a merged model in a minute on any machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

TINY: Final = "tiny"
_START, _END, _PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

# ChatML; `generation` marks what an answer consists of, for the loss.
_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '" + _START + "' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '"
    + _END
    + "' }}{% endgeneration %}"
    "{% else %}{{ message.content + '" + _END + "' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + _START + "assistant\\n' }}{% endif %}"
)


def write_tiny(folder: Path) -> None:
    """Write the model and its tokenizer as Transformers does; the same bits each time.

    Raises:
        OSError: If the folder cannot be written.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # With Transformers' 0.02 the frozen head could tell no token from another: |logit| <= 0.02 * 64.
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_tokenizer() -> Any:
    """A token for each byte, and three for the turns of a chat and for padding."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    bytes_alone = Tokenizer(
        models.BPE({token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens([AddedToken(token, special=True) for token in (_START, _END, _PAD)])
    tokenizer_class: Any = transformers.PreTrainedTokenizerFast
    tokenizer = tokenizer_class(
        tokenizer_object=bytes_alone,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[_START],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
