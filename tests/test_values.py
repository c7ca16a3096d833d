"""What a value in a file or on the command line means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd.cli.config import RunConfig, as_dict, config_names, load_config
from learn2pd.cli.reading import parse, plain_value
from learn2pd.cli.values import keys_of
from learn2pd.embedded.config import EmbeddedConfig
from learn2pd.errors import UserError


def value_at(config, key):
    """The value of a key such as decode.gen_length."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def from_file(folder, text):
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(str(path))


def both_ways(folder, key, text):
    """The value of a key that is written in a file, and on the command line."""
    *sections, name = key.split(".")
    inner = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    in_file = from_file(folder, f"{inner}{'  ' * len(sections)}{name}: {text}\n")
    return value_at(in_file, key), value_at(load_config(None, [f"{key}={text}"]), key)


NUMBERS = {
    "1e-3": 0.001,
    "1E-3": 0.001,
    "2.e-3": 0.002,
    ".5e-2": 0.005,
    "+0.25": 0.25,
    "1": 1,
    "'1e-3'": 0.001,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_a_number_however_it_is_written(text, tmp_path):
    assert both_ways(tmp_path, "train.learning_rate", text) == (NUMBERS[text], NUMBERS[text])


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("0o10", 8), ("0x1F", 31), ("1_000", 1000), ("+7", 7), ("'12'", 12)]
)
def test_a_whole_number_is_not_octal_unless_it_says_so(text, number, tmp_path):
    assert both_ways(tmp_path, "decode.gen_length", text) == (number, number)


@pytest.mark.parametrize(
    "text",
    ["1:30", "190:20:30", "0b11", "2024-01-02", "1.5", "1e3", "yes", "true", "one", "٣", "1__0", "9" * 5000, "[1]"],
)
def test_what_is_no_whole_number_is_refused(text, tmp_path):
    for load in (lambda: from_file(tmp_path, f"seed: {text}"), lambda: load_config(None, [f"seed={text}"])):
        with pytest.raises(UserError, match=r"seed=.*whole number") as caught:
            load()
        assert len(str(caught.value)) < 300


TEXTS = [
    "007",
    "12:30",
    "no",
    "on",
    "1e3",
    "0x10",
    "2024-01-02",
    "true",
    "1_000",
    ".5",
    "a:b",
    "#1",
    "a#1",
    "=",
    "<",
    "~x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_as_it_is_written(text, tmp_path):
    if text == "#1":  # a comment in a file
        assert load_config(None, [f"model.revision={text}"]).model.revision == text
    else:
        assert both_ways(tmp_path, "model.revision", text) == (text, text)
        assert from_file(tmp_path, f"data: {{tasks: [{text}, '{text}']}}").data.tasks == [text, text]


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_on_the_command_line_is_taken_as_it_is(text):
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if not quoted and text not in ("null", "Null", "NULL", "~") and "${" not in text and text != "???":
        assert load_config(None, [f"model.revision={text}"]).model.revision == text


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "${" not in text and text != "???"))
def test_any_text_in_quotes_is_taken_as_it_is(text):
    written = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**6).strip()
    assert load_config(None, [f"model.revision={written}"]).model.revision == text


@given(st.one_of(st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False)))
def test_every_number_of_python_is_the_same_number_here(number):
    assert plain_value(repr(number)) == number
    assert plain_value(f"{number:e}") == pytest.approx(number, rel=1e-6)


@pytest.mark.parametrize("text", ["true", "True", "FALSE", "false"])
def test_true_and_false(text, tmp_path):
    wanted = text.lower() == "true"
    assert both_ways(tmp_path, "data.skip_long", text) == (wanted, wanted)


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "y", "1", "0", "null", "tru", "2.0"])
def test_other_words_are_neither_true_nor_false(text, tmp_path):
    with pytest.raises(UserError, match=r"data\.skip_long=.*true or false"):
        both_ways(tmp_path, "data.skip_long", text)


@pytest.mark.parametrize("text", ["null", "~", "", "Null"])
def test_nothing_is_null_where_that_is_allowed(text, tmp_path):
    assert both_ways(tmp_path, "data.answer_field", text) == (None, None)
    with pytest.raises(UserError, match=r"decode\.gen_length=None: expected a whole number"):
        both_ways(tmp_path, "decode.gen_length", text)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("{threshold: 5e-1}", {"threshold": 0.5}),
        (
            "{a: 010, b: 12:30, c: no, d: 0o10, e: 2024-01-02}",
            {"a": 10, "b": "12:30", "c": "no", "d": 8, "e": "2024-01-02"},
        ),
        ("{a: '1e-3', b: true, c: null, d: [1e2, x]}", {"a": "1e-3", "b": True, "c": None, "d": [100.0, "x"]}),
    ],
)
def test_options_of_a_component_have_the_types_that_they_look_like(options, wanted, tmp_path):
    assert both_ways(tmp_path, "filter_options", options) == (wanted, wanted)


TWICE = [
    "seed: 1\nseed: 2\n",
    "decode: {gen_length: 1}\nseed: 1\ndecode: {batch_size: 4}\n",
    "decode:\n  gen_length: 1\n  batch_size: 2\n  gen_length: 1\n",
    "filter_options: {a: {b: 1, b: 1}}\n",
    "compare: {methods: [{name: v, policy: fixed, name: w}]}\n",
    "seed: 1\n'seed': 1\n",
]


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_stands_in_a_file_twice_is_refused(text, tmp_path):
    with pytest.raises(UserError, match=r"own\.yaml: line \d+: the key '\w+' stands there a second time"):
        from_file(tmp_path, text)


@pytest.mark.parametrize("override", ["filter_options={a: 1, a: 2}", "compare.methods=[{name: v, policy: x, name: w}]"])
def test_a_key_that_stands_in_an_argument_twice_is_refused(override):
    with pytest.raises(UserError, match="a second time"):
        load_config("tiny_filter", [override])


def test_the_last_of_two_arguments_counts_and_the_log_says_so(caplog):
    assert load_config("tiny_filter", ["seed=1", "threads=1", "seed=2", "threads=1"]).seed == 2
    assert [record.getMessage() for record in caplog.records] == ["seed is given twice: '2' counts, and not '1'"]


def path_keys():
    return [
        (schema, key.name)
        for schema in (RunConfig, EmbeddedConfig)
        for key in keys_of(schema)
        if key.field.metadata.get("path")
    ]


def test_every_key_that_holds_a_path_is_known_as_one():
    named = {key.name for key in keys_of(RunConfig) if key.name.split(".")[-1] in ("path", "policy", "output_dir")}
    named |= {key.name for key in keys_of(RunConfig) if key.name.endswith(("_path", "adapter"))}
    assert named <= {name for _, name in path_keys()}
    assert {"examples.path", "export_path", "tokenizer_from"} <= {name for _, name in path_keys()}


@pytest.mark.parametrize(("schema", "key"), path_keys())
@pytest.mark.parametrize("text", ["~/runs/x", "'~/runs/x'", '"~/runs/x"'])
def test_the_home_folder_in_every_key_that_holds_a_path(schema, key, text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "job.yaml"
    path.write_text("job: embedded\n" if schema is EmbeddedConfig else "")
    needed = [] if key == "export_path" or schema is RunConfig else ["export_path=x"]
    assert value_at(load_config(str(path), [f"{key}={text}", *needed]), key) == str(tmp_path / "home" / "runs" / "x")


def test_the_home_folder_in_options_and_in_the_name_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yml").write_text("compare: {methods: [{name: f, policy: filter, options: {folder: ~/policy}}]}")
    config = load_config("~/own.yml", ["output_dir=~"])
    assert config.compare.methods[0].options == {"folder": f"{tmp_path}/policy"}
    assert config.output_dir == str(tmp_path)


def test_an_unknown_home_folder_is_one_line():
    with pytest.raises(UserError, match=r"output_dir='~nobody-of-that-name/x': there is no such home folder"):
        load_config(None, ["output_dir=~nobody-of-that-name/x"])


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("decode.gen_length", "${decode.batch_size}", 16),
        ("seed", "${oc.env:LEARN2PD_TEST}", 7),
        ("decode.stop_floor", "${oc.env:LEARN2PD_FLOAT}", 0.001),
        ("train.learning_rate", "${seed}", 0),
        ("data.skip_long", "${model.compile}", False),
        ("data.skip_long", "${oc.env:LEARN2PD_TRUE}", True),
        ("train.loss_on", "${oc.env:LEARN2PD_LOSS}", "all"),
        ("data.path", "data/${name}-${seed}.jsonl", None),
        ("calibrate.target_agreement", "${calibrate.confidence}", 0.9),
        ("calibrate.max_accuracy_drop", "${model.revision}", None),
        ("model.revision", "${oc.env:LEARN2PD_TEST}", "007"),
        ("calibrate.thresholds", "['${calibrate.confidence}', 0.5]", [0.9, 0.5]),
        ("calibrate.thresholds", "${calibrate.thresholds_}", None),
        ("compare.stops", "${data.tasks}", ["math", "json", "code"]),
        (
            "filter_options",
            "{hidden: '${oc.env:LEARN2PD_TEST}', rate: '${decode.stop_floor}'}",
            {"hidden": 7, "rate": 0.5},
        ),
        ("filter_options", "'${oc.create:{hidden: 3}}'", {"hidden": 3}),
        ("output_dir", "${oc.env:HOME}/x", None),
    ],
)
def test_interpolation_works_for_every_type(key, text, wanted, tmp_path, monkeypatch):
    for name, value in {"TEST": "007", "FLOAT": "1e-3", "TRUE": "true", "LOSS": "all"}.items():
        monkeypatch.setenv(f"LEARN2PD_{name}", value)
    if key == "train.learning_rate":
        with pytest.raises(UserError, match=r"train\.learning_rate=0: expected a value from"):
            both_ways(tmp_path, key, text)
    elif text.endswith("thresholds_}"):
        with pytest.raises(UserError, match="thresholds_"):
            both_ways(tmp_path, key, text)
    elif key == "data.path":
        assert both_ways(tmp_path, key, text) == ("data/own-0.jsonl", "data/default-0.jsonl")
    elif key == "output_dir":
        assert both_ways(tmp_path, key, text)[0] == os.environ["HOME"] + "/x"
    else:
        assert both_ways(tmp_path, key, text) == (wanted, wanted)


@pytest.mark.parametrize(
    "text",
    [
        "${x",
        "${nowhere.at_all}",
        "${seed}",
        "${oc.env:LEARN2PD_NOT_SET}",
        "${x:y}",
        "${decode}",
        "${" * 300,
        "${oc.create:",
    ],
)
def test_an_interpolation_that_leads_nowhere_is_one_line(text):
    with pytest.raises(UserError) as caught:
        load_config(None, [f"seed={text}"])
    assert "\n" not in str(caught.value)


def test_an_entry_of_a_list_and_an_option_of_it_can_be_overridden():
    config = load_config(
        "tiny_filter",
        ["compare.methods[1].options.threshold=5e-1", "compare.methods[0].name=one", "data.tasks[0]=json"],
    )
    assert config.compare.methods[1].options == {"threshold": 0.5}
    assert config.compare.methods[0].name == "one"
    assert config.data.tasks == ["json", "json", "code"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("compare.methods[9].name=x", "7 entries"),
        ("compare.methods[0].nmae=x", "did you mean 'name'"),
        ("compare.methods.name=x", "unknown key"),
        ("compare.methods[0]=x", "must hold keys and values"),
        ("compare.methods[x].name=y", "not a key"),
        ("seed.x=1", "unknown key"),
        ("seed[0]=1", "unknown key"),
        ("decode..gen_length=1", "not a key"),
        (".seed=1", "not a key"),
        ("seed.=1", "not a key"),
        ("=1", "key"),
        ("decode[0]=1", "unknown key"),
        ("calibrate.thresholds[0]=0.5", "0 entries"),
        ("calibrate.thresholds=[0.9, .nan]", "thresholds[1]=nan: expected a value from 0 to 1"),
        ("calibrate.thresholds=[0.9, x]", "thresholds[1]='x': expected a number"),
        ("data.tasks=[math] # only", "comment"),
        ("filter_options={a: 1} #x", "comment"),
        ("filter_options=!!python/name:os.system", "tag"),
        ("filter_options={a: !!str 007}", "tag"),
        ("filter_options={[a]: 1}", "a list or a mapping"),
        ("filter_options=&a {b: *a}", "contains itself"),
        ("filter_options=" + "[" * 10_000, "deep"),
        ("filter_options={a: ", "not YAML"),
        ("train.learning_rate=.inf", "from 1e-09 to 10"),
        ("train.learning_rate=1e999", "from 1e-09 to 10"),
        ("train.learning_rate=nan", "a number"),
        ("output_dir=\"a\\0b\"", "number 0"),
        ("name=???", "must be set"),
        ("data.path='???'", "must be set"),
        ("filter_options={a: '???'}", "must be set"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_that_names_the_key(override, named):
    with pytest.raises(UserError) as caught:
        load_config(None if "thresholds[0]" in override else "tiny_filter", [override])
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    assert named in line
    assert override.partition("=")[0].split("[")[0] in line


FILES = {
    "empty": b"",
    "a text": b"hello",
    "a list": b"- a\n- b\n",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "another encoding": "name: é".encode("latin-1"),
    "two bytes a character": "seed: 1".encode("utf-16"),
    "a control character": b"seed: \x001",
    "a tab": b"decode:\n\tgen_length: 1\n",
    "a dotted key": b"decode.gen_length: 3\n",
    "a null section": b"decode:\n",
    "laughs": b"filter_options:\n  a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"  %c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 10)) for i in range(8)),
    "an anchor that is not there": b"seed: *x\n",
    "a merge of a text": b"decode: {<<: 3}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_strange_file_is_one_line_that_names_it(name, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(FILES[name])
    if name == "empty":
        assert as_dict(load_config(str(path))) == as_dict(load_config(None)) | {
            "name": "own",
            "output_dir": "outputs/own",
        }
        return
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)
    assert name == "a null section" or str(path) in str(caught.value)


def test_anchors_and_merge_keys_work(tmp_path):
    config = from_file(
        tmp_path,
        "decode: &d {gen_length: 64, batch_size: 2}\n"
        "compare:\n  methods:\n    - &m {name: a, policy: fixed}\n    - {<<: *m, name: b}\n    - {<<: *m, name: c}\n",
    )
    assert [(method.name, method.policy) for method in config.compare.methods] == [
        ("a", "fixed"), ("b", "fixed"), ("c", "fixed"),
    ]  # fmt: skip


def test_files_may_end_in_yml_and_begin_with_a_byte_order_mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    (tmp_path / "configs" / "one.yml").write_text("seed: 1", encoding="utf-8-sig")
    (tmp_path / "configs" / "deep" / "two.yaml").write_text("seed: 2", encoding="utf-8")
    assert {"deep/two", "one"} <= set(config_names())  # beside those that the package brings
    assert [load_config(name).seed for name in ("one", "one.yml", "configs/one.yml", "deep/two")] == [1, 1, 1, 2]
    (tmp_path / "configs" / "one.yaml").write_text("seed: 3")
    with pytest.raises(UserError, match="rename one of them"):
        load_config("one")


@pytest.mark.parametrize("name", ["", "x" * 5000, "..", "configs", "/", "no.yaml", "~/no.yml"])
def test_a_name_that_is_no_configuration_is_one_line(name):
    with pytest.raises(UserError, match="no such configuration"):
        load_config(name)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "own.yaml"
    path.write_text("seed: 1")
    monkeypatch.setattr(
        Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UserError, match="Permission denied"):
        load_config(str(path))


def test_the_shipped_files_mean_the_same_to_yaml_1_1():
    """A guard of the reader: the shipped files use nothing in which the two versions of YAML differ."""
    for path in Path("configs").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        written = yaml.safe_load(text)
        config = as_dict(load_config(str(path)))
        assert parse(text) is not None
        for section, inner in written.items():
            if section not in ("compare", "job"):
                for key, value in inner.items() if isinstance(inner, dict) else []:
                    assert config[section][key] == value


def test_a_mapping_is_joined_with_that_of_the_file_and_an_empty_one_empties_it():
    options = load_config("tiny_own_answers").train.rollout_options
    assert options
    changed = load_config("tiny_own_answers", ["train.rollout_options={take_back: 0.5}"]).train.rollout_options
    assert changed == options | {"take_back": 0.5}
    assert load_config("tiny_own_answers", ["train.rollout_options={}"]).train.rollout_options == {}
