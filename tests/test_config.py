"""Every shipped configuration loads; every mistake gives one line that names the key."""

import pytest
import yaml

from learn2pd.cli.config import config_names, differences, load_config
from learn2pd.errors import UserError
from learn2pd.files import shipped_folder

SIZE_KEYS = {
    "model",
    "policy",
    "data",
    "decode",
    "record",
    "train",
}  # what "model, data and size" means in the head comment of the filter configurations


@pytest.mark.parametrize("path", sorted(shipped_folder("configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    config = load_config(str(path))
    assert config.name == path.stem
    assert config.output_dir == f"outputs/{path.stem}"


def changed_keys(first: str, second: str) -> set[str]:
    """Sections in which two shipped configurations differ."""
    one, other = (yaml.safe_load((shipped_folder("configs") / f"{name}.yaml").read_text()) for name in (first, second))
    return {key.split(".")[0] for key in differences(one, other)}


def test_the_filter_configurations_differ_only_in_model_data_and_size():
    assert changed_keys("tiny_filter", "llada_filter") <= SIZE_KEYS
    assert changed_keys("llada_filter", "dream_filter") == {"model"}


@pytest.mark.parametrize("name", ["sdar_filter", "llada2_filter", "fast_dllm_v2_filter"])
def test_the_block_causal_configurations_differ_in_model_blocks_and_caches(name):
    assert changed_keys("llada_filter", name) <= {"model", "decode", "compare"}


def test_overrides_reach_the_configuration():
    config = load_config(
        "tiny_filter", ["decode.gen_length=100", "data.tasks=[math]", "compare.stops=[eot]", "model.revision=main"]
    )
    assert (config.decode.gen_length, config.data.tasks, config.compare.stops, config.model.revision) == (
        100,
        ["math"],
        ["eot"],
        "main",
    )


def test_an_option_of_a_component_can_be_overridden_alone():
    config = load_config("tiny_filter", ["filter_options.hidden=16", "filter_options.layers=1"])
    assert config.filter_options == {"hidden": 16, "layers": 1}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("decode.gen_lenght=1", ["decode.gen_lenght", "did you mean 'decode.gen_length'"]),
        ("gen_length=1", ["gen_length", "did you mean 'decode.gen_length'"]),
        ("filter_optoins.hidden=1", ["filter_optoins.hidden", "unknown key"]),
        ("decode.gen_length=long", ["decode.gen_length", "'long'", "whole number"]),
        ("decode.gen_length=1.5", ["decode.gen_length", "1.5", "whole number"]),
        ("decode.batch_size=0", ["decode.batch_size", "0", "from 1"]),
        ("calibrate.target_agreement=2", ["calibrate.target_agreement", "2", "from 0.0001 to 0.9999"]),
        ("data.source=jsnol", ["data.source", "jsnol", "did you mean 'jsonl'"]),
        ("data.run_generated_code=maybe", ["data.run_generated_code", "maybe", "true or false"]),
        ("data.tasks=math", ["data.tasks", "a list of text"]),
        ("stages=[recrod]", ["recrod", "did you mean 'record'"]),
        ("compare.methods=[{nmae: x, policy: fixed}]", ["nmae", "did you mean 'name'"]),
        ("decode=3", ["decode", "3"]),
        ("compare.methods=[{policy: fixed}]", ["compare.methods[0].name", "must be set"]),
        ("seed=-1", ["seed=-1", "from 0 to 4294967295"]),
        ("output_dir=", ["output_dir is empty", "a path"]),
        ("output_dir=' '", ["output_dir is empty"]),
        ("model.path=", ["model.path is empty"]),
        ("stages=[record,record]", ["stages=", "'record' stands there twice"]),
        ("train.predictors=[keep,keep]", ["train.predictors=", "'keep' stands there twice"]),
        ("compare.stops=[none,eot,none]", ["compare.stops=", "'none' stands there twice"]),
        ("seed=99999999999999999999", ["seed", "to 4294967295"]),
    ],
)
def test_a_wrong_override_is_named(override, named):
    with pytest.raises(UserError) as caught:
        load_config("tiny_filter", [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


def test_an_unknown_configuration_lists_those_there_are():
    with pytest.raises(UserError, match="tiny_filtre") as caught:
        load_config("tiny_filtre")
    for name in config_names():
        assert name in str(caught.value)


def test_resume_and_overwrite_exclude_each_other():
    with pytest.raises(UserError, match="resume"):
        load_config("tiny_filter", ["resume=true", "overwrite=true"])


def test_broken_yaml_is_one_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1\nb: }")
    with pytest.raises(UserError, match="not YAML"):
        load_config(str(path))
