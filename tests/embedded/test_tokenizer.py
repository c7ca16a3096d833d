from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from learn2pd.embedded.tokenizer import train_tokenizer


@example("Then 12 - 007 = 3\n\n  ####  40")
@example("naïve 日本 🙂 \u200b\t\r\n")
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_no_token_holds_more_than_two_digits_or_a_digit_and_anything_but_a_space(tokenizer):
    for number in range(4, len(tokenizer)):
        text = tokenizer.decode([number])
        if any(character in "0123456789" for character in text):
            assert text.removeprefix(" ").isdigit(), text
            assert len(text.removeprefix(" ")) <= 2


def test_special_tokens_are_single_and_distinct(tokenizer):
    ids = [
        tokenizer.convert_tokens_to_ids(token)
        for token in ("<|endoftext|>", "<|mdm_mask|>", "<|user|>", "<|assistant|>")
    ]
    assert ids == [tokenizer.eos_token_id, tokenizer.mask_token_id, *ids[2:]]
    assert len(set(ids)) == 4
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": " hello "}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|user|>hello<|assistant|>"
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert (encoded[0], encoded[-1]) == (ids[2], ids[3])


def test_training_a_tokenizer_twice_gives_the_same():
    texts = ["a number 12 and a word"] * 30
    first, second = (train_tokenizer(texts, 300, 64).get_vocab() for _ in range(2))
    assert first == second
