"""The embedded dLLM's tokenizer: byte-level BPE of about a thousand tokens, learnt from the built-in tasks.

Any UTF-8 text round-trips. A number of up to two digits is one token, with the space before it or without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mdm_mask|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn the merges of a tokenizer from texts.

    Args:
        texts: The corpus.
        vocab_size: The largest size of the vocabulary, special tokens and the 256 bytes included.
        max_length: The number of tokens of the longest sequence of the model that the tokenizer is for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d{1,2}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT, MASK, USER, ASSISTANT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        mask_token=MASK,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer so that every version of transformers can read it.

    The files are tokenizer.json and tokenizer_config.json, with the chat template inside.

    Args:
        tokenizer: The tokenizer.
        folder: The folder to write to.
    """
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name every transformers version knows
    for name in ("backend", "is_local", "local_files_only"):  # these describe this process and not the tokenizer
        described.pop(name, None)
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
