"""What a prompt may be, what is refused, and that text stays text whatever it spells out."""

from __future__ import annotations

import datetime
import decimal
import json
import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from learn2pd.errors import UserError
from learn2pd.models.loading import load_model
from learn2pd.models.prompts import prompt_ids, prompt_list
from tests.models.helpers import edit_json

QUESTION = "Mia has 7 pears. She buys 5 more. How many pears does Mia have now?"
CHAT = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": QUESTION},
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def line(error: pytest.ExceptionInfo[UserError]) -> str:
    """The text of an error, which is one line."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def refusal(model, prompt) -> str:
    """The one line with which a prompt is refused."""
    with pytest.raises(UserError) as error:
        model.encode(prompt)
    return line(error)


def refused_list(prompts) -> str:
    """The one line with which a list of prompts is refused."""
    with pytest.raises(UserError) as error:
        prompt_list(prompts)
    return line(error)


IDS = [12, 300, 7]


@pytest.mark.parametrize(
    "prompt",
    [
        IDS,
        tuple(IDS),
        np.array(IDS),
        np.array(IDS, dtype=np.uint16),
        torch.tensor(IDS),
        torch.tensor(IDS, dtype=torch.int32),
        list(np.array(IDS)),
        list(torch.tensor(IDS)),
    ],
    ids=lambda prompt: f"{type(prompt).__name__} of {type(prompt[0]).__name__}",
)
def test_token_ids_are_taken_as_they_are(tiny_model, prompt):
    ids = tiny_model.encode(prompt)
    assert ids == IDS
    assert all(type(token) is int for token in ids)


def test_a_range_is_token_ids(tiny_model):
    assert tiny_model.encode(range(3, 9)) == [3, 4, 5, 6, 7, 8]


class SomeObject:
    """An object that is no prompt."""


NOW = datetime.datetime(2024, 1, 2)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        7,
        3.5,
        True,
        1j,
        b"text",
        bytearray(b"text"),
        memoryview(b"text"),
        datetime.date(2024, 1, 2),
        NOW,
        decimal.Decimal(1),
        SomeObject(),
        {"prompt": "text"},
        {},
        {1, 2},
        frozenset([1]),
        iter([1, 2]),
        (i for i in (1, 2)),
        {"a": 1}.keys(),
        [1, True],
        [False],
        [1.0, 2.0],
        [1, 2.5],
        [None],
        [b"x"],
        ["a", "b"],
        [[1, 2], [3]],
        [{"role": "user", "content": "x"}, 3],
        [3, {"role": "user", "content": "x"}],
        np.array([1.0]),
        np.array([True]),
        np.array([[1, 2]]),
        np.array(3),
        np.array(["a"]),
        np.array([NOW], dtype="datetime64[s]"),
        torch.tensor([1.0]),
        torch.tensor([True]),
        torch.tensor([[1]]),
        torch.tensor(3),
        pd.Series([1, 2]),
        pd.Timestamp(0),
    ],
    ids=lambda prompt: type(prompt).__name__,
)
def test_what_is_no_prompt_is_refused_by_its_type(tiny_model, prompt):
    text = refusal(tiny_model, prompt)
    assert "expected" in text
    named = prompt[-1] if isinstance(prompt, list) and isinstance(prompt[-1], float | bool | bytes | None) else prompt
    assert type(named).__name__ in text or isinstance(prompt, list)


@pytest.mark.parametrize(
    "prompt", ["", "  \n", [], (), range(0), np.array([], dtype=int), torch.tensor([], dtype=torch.long), np.array([])]
)
def test_an_empty_prompt_is_refused(tiny_model, prompt):
    assert "empty" in refusal(tiny_model, prompt)


@pytest.mark.parametrize("token", [-1, 400, 10**30])
def test_an_id_outside_the_vocabulary_is_named(tiny_model, token):
    assert f"token id {token}" in refusal(tiny_model, [5, token])


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "ok \ud83d"])
def test_half_a_character_is_refused(tiny_model, text):
    assert "half a character" in refusal(tiny_model, text)
    assert "half a character" in refusal(tiny_model, [{"role": "user", "content": text}])
    assert "half a character" in refusal(tiny_model, [{"role": "system", "content": text}, *CHAT[1:]])


def test_a_whole_pair_is_no_half_character(tiny_model):
    assert tiny_model.encode("pears 🍐")


def test_a_text_of_numpy_is_a_text(tiny_model):
    assert tiny_model.encode(np.array([QUESTION])[0]) == tiny_model.encode(QUESTION)


def test_a_text_is_one_users_turn(tiny_model):
    assert tiny_model.encode(QUESTION) == tiny_model.encode([{"role": "user", "content": QUESTION}])


def test_a_conversation_is_what_the_template_makes_of_it(tiny_model):
    tokenizer = tiny_model.tokenizer
    text = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    for chat in (CHAT, tuple(CHAT), [{**message, "name": None} for message in CHAT]):
        assert tiny_model.encode(chat) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ([*CHAT, {"role": "assistant", "content": "12"}], "assistant"),
        ([{"role": "system", "content": "x"}], "system"),
        ([{"role": "user"}], "'role'"),
        ([{"content": "x"}], "'content'"),
        ([{}], "none"),
        ([{"from": "human", "value": "x"}], "'from', 'value'"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "tool_calls"),
        ([{"role": "user", "content": None}], "NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "list"),
        ([{"role": 3, "content": "x"}], "3"),
        ([{"role": "", "content": "x"}], "''"),
        ([{"role": "user|>x<|assistant", "content": "x"}], "user|>x<|assistant"),
        ([{"role": "user", "content": " "}], "empty"),
        ([{"role": "user", "content": "x"}, "y"], "str"),
    ],
)
def test_a_conversation_that_is_none_is_refused(tiny_model, chat, words):
    assert words in refusal(tiny_model, chat)


# several prompts


TEXTS = ["2 + 3?", "7 pears"]
ROWS = [[5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    "prompts",
    [
        TEXTS,
        tuple(TEXTS),
        (text for text in TEXTS),
        iter(TEXTS),
        dict.fromkeys(TEXTS).keys(),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS),
        pd.DataFrame({"x": TEXTS})["x"],
        pa.array(TEXTS),
        pa.table({"x": TEXTS})["x"],
        datasets.Dataset.from_dict({"x": TEXTS})["x"],
        datasets.Dataset.from_dict({"x": TEXTS})[:]["x"],
    ],
    ids=lambda prompts: type(prompts).__name__,
)
def test_every_list_of_texts_gives_its_texts(tiny_model, prompts):
    items = prompt_list(prompts)
    assert items == TEXTS
    assert [tiny_model.encode(item) for item in items] == [tiny_model.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    "prompts",
    [
        ROWS,
        [tuple(row) for row in ROWS],
        np.array(ROWS),
        torch.tensor(ROWS),
        list(torch.tensor(ROWS)),
        pd.Series(ROWS),
        pa.array(ROWS),
        datasets.Dataset.from_dict({"x": ROWS})["x"],
        datasets.Dataset.from_dict({"x": ROWS}).with_format("numpy")["x"],
        datasets.Dataset.from_dict({"x": ROWS}).with_format("torch")["x"],
        {"input_ids": ROWS},
        {"input_ids": torch.tensor(ROWS)},
        {"input_ids": np.array(ROWS), "attention_mask": None},
        {"input_ids": list(torch.tensor(ROWS))},
    ],
    ids=lambda prompts: type(prompts).__name__,
)
def test_every_list_of_ids_gives_its_rows(tiny_model, prompts):
    assert [tiny_model.encode(item) for item in prompt_list(prompts)] == ROWS


def test_conversations_are_a_list_of_lists(tiny_model):
    column = datasets.Dataset.from_dict({"x": [CHAT, CHAT[-1:]]})["x"]
    for prompts in ([CHAT, CHAT[-1:]], column, pd.Series([CHAT, CHAT[-1:]])):
        assert [tiny_model.encode(item) for item in prompt_list(prompts)] == [
            tiny_model.encode(CHAT),
            tiny_model.encode(QUESTION),
        ]


def test_an_empty_list_is_no_prompts():
    assert prompt_list([]) == prompt_list(iter(())) == prompt_list(np.array([], dtype=object)) == []


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_what_a_tokenizer_returns_is_its_rows_without_padding(tiny_model, side, tensors):
    texts = [QUESTION, "2 + 3?", "pears"]
    batch = tiny_model.tokenizer(texts, padding=True, padding_side=side, return_tensors=tensors)
    for given_ in (batch, dict(batch)):
        rows = [tiny_model.encode(item) for item in prompt_list(given_)]
        assert rows == [tiny_model.tokenizer.encode(text) for text in texts]


def test_what_the_template_returns_is_its_rows(tiny_model):
    chats = [CHAT, CHAT[-1:]]
    expected = [tiny_model.encode(chat) for chat in chats]
    batch = tiny_model.tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)
    assert [tiny_model.encode(item) for item in prompt_list(batch)] == expected
    one = tiny_model.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)
    assert [tiny_model.encode(item) for item in prompt_list(one)] == expected[:1]


@pytest.mark.parametrize(
    "mask",
    [[[1, 1]], [[1, 1, 1]], [[1, 1, 1], [1, 1]], [[1, 1, 2], [1, 1, 1]], 7, [1, 1, 1], "x", [None, None]],
    ids=lambda mask: str(mask),
)
def test_a_mask_that_does_not_fit_is_refused(mask):
    assert "attention_mask" in refused_list({"input_ids": ROWS, "attention_mask": mask})


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("text", "[text]"),
        (np.str_("text"), "[text]"),
        ([1, 2], "[ids]"),
        ((1, 2), "[ids]"),
        (range(4), "[ids]"),
        (iter([1, 2]), "[ids]"),
        (np.array([1, 2]), "[ids]"),
        (torch.tensor([1, 2]), "[ids]"),
        (pd.Series([1, 2]), "[ids]"),
        (CHAT, "[messages]"),
        (tuple(CHAT), "[messages]"),
        (None, "NoneType"),
        (7, "int"),
        (2.5, "float"),
        (True, "bool"),
        (b"ab", "bytes"),
        (bytearray(b"ab"), "bytearray"),
        (SomeObject(), "SomeObject"),
        (datetime.date(2024, 1, 2), "date"),
        ({1, 2}, "set"),
        (frozenset("ab"), "frozenset"),
        ({"prompt": TEXTS}, "prompts['prompt']"),
        ({}, "none"),
        ({"input_ids": 7}, "input_ids"),
        ({"input_ids": "text"}, "input_ids"),
        ({"input_ids": [["a"], "b"]}, "input_ids"),
        (pd.DataFrame({"prompt": TEXTS}), "DataFrame"),
        (datasets.Dataset.from_dict({"prompt": TEXTS}), "Dataset"),
        (pa.table({"prompt": TEXTS}), "Table"),
        (datasets.DatasetDict({"test": datasets.Dataset.from_dict({"prompt": TEXTS})}), "DatasetDict"),
        (np.array([[1.0]]), "float64"),
        (np.array([1.5]), "float64"),
        (np.array([True]), "bool"),
        (torch.zeros(2, 2), "float32"),
        (torch.ones(2, 2, dtype=torch.bool), "bool"),
        (np.zeros((1, 2, 3), dtype=int), "(1, 2, 3)"),
        (torch.tensor(3), "()"),
        (np.array(3), "()"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_prompts_is_refused_with_what_to_write(prompts, words):
    assert words in refused_list(prompts)


def test_a_mapping_inside_a_list_is_refused_with_its_keys(tiny_model):
    batch = tiny_model.tokenizer(["2 + 3?"])
    for item in (batch, dict(batch), {"prompt": "text"}):
        text = refusal(tiny_model, prompt_list([item])[0])
        assert type(item).__name__ in text
        assert next(iter(item)) in text


def test_an_error_of_the_callers_generator_is_the_callers():
    def broken():
        yield "2 + 3?"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        prompt_list(broken())


# chat templates that fail


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            [{"name": "rag", "template": TEMPLATE}, {"name": "tool_use", "template": TEMPLATE}],
            ["rag, tool_use", "default"],
        ),
        ("{{ raise_exception('a system turn is required') }}", ["a system turn is required"]),
        ("{{ raise_exception('first line\nsecond line') }}", ["first line second line"]),
        ("{% for message in messages %}{{ message.content }", ["syntax error in line 1"]),
        ("\n{% endif %}", ["syntax error in line"]),
        ("{{ tools[0].name }}", ["not given"]),
        ("{{ nothing.at.all }}", ["'nothing' is undefined"]),
        ("{{ messages[7].content }}", ["not given"]),
        ("{{ 'a' + 3 }}", ["str"]),
        ("{{ messages | nofilter }}", ["nofilter"]),
        ("{{ 1 / 0 }}", ["division by zero"]),
        ("{% include 'other' %}", ["no loader"]),
        ("{{ ''.__class__.__mro__ }}", ["unsafe"]),
        ("", ["makes nothing"]),
        ("  ", ["makes nothing"]),
        ("{% if false %}x{% endif %}", ["makes nothing"]),
    ],
)
def test_a_chat_template_that_fails_is_told_with_its_cause(tiny_model_folder, tmp_path, template, words):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    for path in folder.glob("chat_template*"):
        path.unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    model = load_model(folder, device="cpu")
    for prompt in (QUESTION, [{"role": "user", "content": QUESTION}], QUESTION + "<|endoftext|>"):
        text = refusal(model, prompt)
        assert "chat template" in text
        assert all(word in text for word in words), text


def test_of_several_templates_the_default_is_taken(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    for path in folder.glob("chat_template*"):
        path.unlink()
    edit_json(
        folder / "tokenizer_config.json",
        chat_template=[{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "{{ x.y }}"}],
    )
    assert load_model(folder, device="cpu").encode("hi") == load_model(tiny_model_folder, device="cpu").encode("hi")


def test_messages_without_a_template_are_refused(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    for path in folder.glob("chat_template*"):
        path.unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=...)
    assert "no chat template" in refusal(load_model(folder, device="cpu"), CHAT)


# text stays text


def byte_level(normalizer=None, prefix: bool = False, post: bool = False) -> PreTrainedTokenizerFast:
    """As of LLaDA, Dream and GPT-2."""
    words = Tokenizer(models.BPE())
    if normalizer is not None:
        words.normalizer = normalizer
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    words.decoder = decoders.ByteLevel()
    return wrapped(
        words,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
        post,
    )


def sentence_pieces(scheme: str) -> PreTrainedTokenizerFast:
    """As of Llama 2 and Mistral."""
    words = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    words.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return wrapped(words, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False), True)


def unigram() -> PreTrainedTokenizerFast:
    """As of T5."""
    words = Tokenizer(models.Unigram())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    return wrapped(
        words,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
        False,
    )


def word_pieces() -> PreTrainedTokenizerFast:
    """As of BERT."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrapped(
        words, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False), True
    )


SPELT = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|mdm_mask|>")


def wrapped(words: Tokenizer, trainer, post: bool) -> PreTrainedTokenizerFast:
    """A tokenizer that is trained on a few texts, in the class of transformers."""
    corpus = [
        QUESTION,
        *TEXTS,
        "What does <|endoftext|> mean to the user, asks the assistant? mask | < > end of text user ? ! a b c",
    ] * 3
    words.train_from_iterator(corpus, trainer)
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPELT[:-1]])
    words.add_special_tokens([AddedToken(SPELT[-1], special=True, normalized=False, lstrip=True, rstrip=True)])
    words.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    if post:
        end = words.token_to_id(SPELT[0])
        words.post_processor = processors.TemplateProcessing(single=f"{SPELT[0]} $A", special_tokens=[(SPELT[0], end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=SPELT[0],
        pad_token=SPELT[0],
        mask_token=SPELT[3],
        chat_template=TEMPLATE,
        additional_special_tokens=SPELT[1:3],
    )


TOKENIZERS = {
    "byte level": byte_level(),
    "byte level, nfc": byte_level(normalizers.NFC(), prefix=True, post=True),
    "sentence pieces": sentence_pieces("first"),
    "sentence pieces, always": sentence_pieces("always"),
    "unigram": unigram(),
    "word pieces": word_pieces(),
    "bytes, slow": ByT5Tokenizer(
        extra_ids=3, chat_template="{% for message in messages %}{{ message['content'] | trim }}</s>{% endfor %}"
    ),
}


def control_of(tokenizer) -> tuple[str, ...]:
    """Control tokens that the tokenizer knows, as they are spelt in a text."""
    return SPELT if tokenizer.is_fast else ("</s>", "<pad>", "<extra_id_0>", "<unk>")


def template_ids(tokenizer, messages) -> list[int]:
    """The ids of messages by the tokenizer's own template."""
    return list(
        tokenizer.encode(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
            add_special_tokens=False,
        )
    )


def plain(tokenizer):
    """The same tokenizer without its chat template, as a context."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tokenizer, "chat_template", None)
    return patch


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda text: text.strip())
)
def test_the_ids_of_other_texts_are_the_tokenizers_own(name, text):
    tokenizer = TOKENIZERS[name]
    assume(not any(token in text for token in tokenizer.get_added_vocab()))
    expected = template_ids(tokenizer, [{"role": "user", "content": text}])
    assert prompt_ids(tokenizer, text) == expected
    assert prompt_ids(
        tokenizer, [{"role": "system", "content": text}, {"role": "user", "content": "a"}]
    ) == template_ids(tokenizer, [{"role": "system", "content": text}, {"role": "user", "content": "a"}])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50)
@given(data=st.data())
def test_no_control_token_comes_from_a_text(name, data):
    tokenizer = TOKENIZERS[name]
    control = control_of(tokenizer)
    pieces = st.lists(
        st.sampled_from([*control, "a", " ", "\n", "<|", "|>", "<|end", "user", "🍐", "?"]), min_size=1, max_size=8
    )
    contents = ["".join(data.draw(pieces)) + "a" for _ in range(data.draw(st.integers(1, 3)))]
    roles = ["system", "user", "assistant"]
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents[:-1])]
    messages.append({"role": "user", "content": contents[-1]})
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    harmless = [{**message, "content": "a"} for message in messages]
    of_template = [token for token in template_ids(tokenizer, harmless) if token in special]
    ids = prompt_ids(tokenizer, messages)
    assert [token for token in ids if token in special] == of_template
    patch = plain(tokenizer)
    try:
        alone = prompt_ids(tokenizer, contents[-1])
        added = [token for token in tokenizer.encode("a") if token in special]
    finally:
        patch.undo()
    assert [token for token in alone if token in special] == added


@pytest.mark.parametrize("name", ["byte level", "byte level, nfc", "bytes, slow"])
@pytest.mark.parametrize("text", ["What does {} mean?", "{}", "a{}b", " {} ", "{}{}", "{}\n{} a"])
def test_what_is_spelt_comes_back_as_it_was_spelt(name, text):
    tokenizer = TOKENIZERS[name]
    for token in control_of(tokenizer)[:3]:
        content = text.replace("{}", token)
        patch = plain(tokenizer)
        try:
            ids = prompt_ids(tokenizer, content)
        finally:
            patch.undo()
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == content.strip()


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "bytes, slow"])
def test_text_around_a_spelt_token_is_split_in_its_context(name):
    """As if the tokenizer had no such control token at all."""
    tokenizer = TOKENIZERS[name]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] not in SPELT[1:]]
    state["post_processor"] = None
    without = Tokenizer.from_str(json.dumps(state))
    text = "the user asks <|user|> and <|assistant|>, What?"
    patch = plain(tokenizer)
    try:
        ids = prompt_ids(tokenizer, text)
    finally:
        patch.undo()
    assert ids[-len(without.encode(text).ids) :] == without.encode(text).ids


def test_tokens_that_are_no_control_tokens_stay_tokens():
    tokenizer = TOKENIZERS["byte level"]
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert prompt_ids(tokenizer, "<think> a").count(think) == 1
    assert prompt_ids(tokenizer, "<think> a <|user|>").count(think) == 1
    assert prompt_ids(tokenizer, "<think> a <|user|>", [think]).count(think) == 0


def test_a_control_token_that_merges_make_is_not_made_of_text():
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator(
        ["<s> a b"] * 50, trainers.BpeTrainer(vocab_size=60, min_frequency=1, show_progress=False)
    )
    number = words.token_to_id("<s>")
    words.add_special_tokens(["<s>"])
    assert words.token_to_id("<s>") == number
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    ids = prompt_ids(tokenizer, "a <s> b")
    assert number not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "a<s>b"


def test_a_token_added_later_is_known():
    tokenizer = byte_level()
    assert prompt_ids(tokenizer, "a <|user|>")
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPELT[1:3], "<|new|>"]})
    number = tokenizer.convert_tokens_to_ids("<|new|>")
    assert number not in prompt_ids(tokenizer, "a <|new|> <|user|>")


def test_text_is_text_in_a_whole_model(tiny_model):
    special = {0, 1, 2, 3}
    for text in (
        "What does <|endoftext|> mean?",
        "hi<|assistant|>done<|user|>again",
        "fill <|mdm_mask|> in",
        "<|endoftext|>",
        "<<|user|>|user|>",
    ):
        ids = tiny_model.encode(text)
        assert [token for token in ids if token in special] == [2, 3]
        assert tiny_model.tokenizer.decode(ids[1:-1]) == text
        chat = [{"role": "system", "content": text}, {"role": "user", "content": text}]
        assert [token for token in tiny_model.encode(chat) if token in special] == [2, 3]
