"""Hidden states as channels: the map, what is recorded, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learn2pd import UserError, export_policy, load_policy
from learn2pd.caches.fast_dllm import DualCache
from learn2pd.caches.none import NoCache
from learn2pd.cli import main as cli
from learn2pd.cli.config import load_config
from learn2pd.cli.stages.recording import check_hidden
from learn2pd.cli.stages.training import check_training
from learn2pd.loop.observing import Observer
from learn2pd.method import Method
from learn2pd.models.loading import load_model
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.predictors.features import View
from learn2pd.predictors.filter import FilterPolicy, Final
from learn2pd.predictors.hidden import hidden_map, top_in_window
from learn2pd.predictors.networks import Conv, Transformer
from learn2pd.predictors.questions import make_batch
from learn2pd.predictors.saving import Contract, Predictor, build_network, network_json
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import StateRecorder, WindowValues
from learn2pd.schedulers.blocks import BlocksScheduler
from tests.contract.helpers import run

GEN, BLOCK, WIDTH, NUMBERS = 24, 8, 32, 5  # the tiny models have hidden states of 32 features


def predictor_of(spec, kind=Transformer, numbers=NUMBERS):
    torch.manual_seed(0)
    network = kind(hidden=8, hidden_states=numbers, model_width=WIDTH)
    network.hidden_map.copy_(hidden_map(WIDTH, numbers))
    with torch.no_grad():
        network.leave.weight *= 6
    return Predictor("filter", network, 0.5, Contract.of(spec))


class Watch(Observer):
    """Keeps every step."""

    def __init__(self, *needs):
        self.needs = frozenset(needs)
        self.steps = []

    def observe(self, step):
        self.steps.append(step)


def test_the_map_is_orthogonal_and_always_the_same():
    projection = hidden_map(64, 16)
    assert torch.allclose(projection.T @ projection, torch.eye(16), atol=2e-3)
    assert projection.equal(hidden_map(64, 16))
    assert projection.equal(projection.half().float())
    states = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    whole = (states @ hidden_map(64, 64)).norm(dim=1)
    assert torch.allclose(whole, states.norm(dim=1), rtol=1e-2)


@pytest.mark.parametrize("model", ["tiny_model", "tiny_dream"])
@pytest.mark.parametrize("cache", [NoCache(), DualCache()], ids=["none", "dual"])
def test_hidden_states_are_those_of_the_proposals(request, make_prompts, model, cache):
    model = request.getfixturevalue(model)
    watch = Watch("hidden")
    options = {"scheduler": BlocksScheduler(BLOCK), "cache": cache, "gen_length": GEN, "observer": watch}
    run(model, make_prompts([7, 4]), ThresholdPolicy(0.4), **options)
    for step in watch.steps:
        prediction = step.prediction
        logits = model.adapter.score(prediction.hidden)
        logits[:, model.spec.mask_id] = -torch.inf
        assert logits.argmax(1).equal(prediction.tokens[prediction.valid])


def test_nothing_is_kept_where_nobody_asks(tiny_model, make_prompts):
    watch = Watch()
    run(tiny_model, make_prompts([7]), ThresholdPolicy(0.4), gen_length=GEN, observer=watch)
    assert all(step.prediction.hidden is None for step in watch.steps)


class Overlapping(Transformer):
    """The transformer whose attention depends on overlaps."""

    def __init__(self, **options):
        super().__init__(**options, overlap=True)


@pytest.mark.parametrize("kind", [Conv, Transformer, Overlapping])
def test_a_network_sees_the_same_in_training_as_in_a_decode(tiny_model, make_prompts, kind):
    seen = []
    predictor = predictor_of(tiny_model.spec, kind)
    network = predictor.network

    class Spy(kind):
        def forward(self, *inputs):
            seen.append(inputs)
            return super().forward(*inputs)

    network.__class__ = Spy
    windows = WindowValues(BLOCK, hidden_map(WIDTH, NUMBERS), top=True)
    recorder = StateRecorder(torch.zeros(1, GEN, dtype=torch.long), tiny_model.spec.eot_ids, (), windows)
    policy = FilterPolicy(predictor)
    assert "hidden" in policy.needs
    run(tiny_model, make_prompts([7]), policy, scheduler=BlocksScheduler(BLOCK), gen_length=GEN, observer=recorder)
    columns = recorder.columns() | {"length": torch.zeros(len(seen))}
    for step, (inputs, _, _, *overlap) in enumerate(seen):
        batch = make_batch({name: values[step : step + 1] for name, values in columns.items()}, Final(), network)
        assert torch.allclose(batch.inputs, inputs)
        assert len(overlap) == network.overlap
        assert all(torch.allclose(batch.overlap, values) and values.any() for values in overlap)
        assert batch.inputs[..., -NUMBERS:].any()
        assert not batch.inputs[..., -NUMBERS:][~batch.asked].any()


@pytest.mark.parametrize("kind", [Conv, Transformer])
def test_a_network_is_built_again_from_its_description(kind):
    for numbers in (0, NUMBERS):
        network = kind(hidden=8, hidden_states=numbers, model_width=WIDTH if numbers else 0)
        described = network_json(network)
        assert ("hidden_states" in described["options"]) is bool(numbers)
        again = build_network(**described)
        assert again.channels == network.channels
        again.load_state_dict(network.state_dict())


def test_overlaps_are_those_of_whole_distributions_up_to_the_tokens_that_are_left_out(tiny_model, make_prompts):
    """Two positions have in common what both hold; a position has its four best tokens in common with itself."""
    watch = Watch("top", "logits")
    options = {"scheduler": BlocksScheduler(BLOCK), "gen_length": GEN, "observer": watch}
    run(tiny_model, make_prompts([7, 5]), ThresholdPolicy(0.4), **options)
    for step in watch.steps:
        prediction = step.prediction
        shares = prediction.logits.softmax(-1).float()
        assert torch.allclose(shares.gather(1, prediction.top_ids), prediction.top_shares, atol=1e-6)
        assert prediction.top_ids.equal(shares.topk(4).indices)
        ids, kept = top_in_window(prediction, step.state.window, BLOCK)
        view = View(*[None] * 9, top_ids=ids, top_shares=kept)
        row = prediction.valid.nonzero()[0, 0]
        scored = prediction.valid[row].nonzero()[:, 0] - step.state.window.start[row]
        whole = shares[: len(scored)]
        exact = torch.minimum(whole[:, None], whole[None]).sum(-1)
        overlap = view.overlap[row][scored][:, scored]
        left_out = 1 - prediction.top_shares[: len(scored)].sum(1)
        assert (overlap <= exact + 1e-3).all()
        assert (exact - overlap <= left_out[:, None] + left_out[None] + 1e-3).all()
        assert torch.allclose(overlap.diagonal(), 1 - left_out.float(), atol=2e-3)


def test_equal_certain_proposals_overlap_wholly_and_different_ones_not_at_all():
    ids = torch.tensor([[[5, 1, 2, 3], [5, 7, 8, 9], [6, 1, 2, 3]]])
    shares = torch.tensor([[[1.0, 0, 0, 0], [0.6, 0.2, 0.1, 0.1], [1.0, 0, 0, 0]]])
    view = View(*[None] * 9, top_ids=ids, top_shares=shares)
    assert torch.allclose(view.overlap, torch.tensor([[[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 1.0]]]))
    assert View(*[None] * 9).overlap is None


def test_more_numbers_than_the_model_has_are_refused():
    with pytest.raises(UserError, match="hidden_states=33: the model's hidden states have 32 numbers"):
        build_network("conv", {"hidden_states": 33, "model_width": 32})


def test_another_model_is_refused(tiny_model):
    policy = FilterPolicy(predictor_of(tiny_model.spec))
    method = Method(policy, BlocksScheduler(BLOCK))
    method.check(tiny_model.spec)
    with pytest.raises(UserError, match=rf"{tiny_model.spec.fingerprint}\), this run has other model \(0123\)"):
        method.check(replace(tiny_model.spec, name="other model", fingerprint="0123"))


@pytest.mark.parametrize("to", ["file", "sglang", "transformers"])
def test_engines_that_give_logits_alone_refuse_it_in_one_line(tiny_model, tmp_path, to):
    policy = FilterPolicy(predictor_of(tiny_model.spec))
    with pytest.raises(UserError, match="needs the extra 'hidden'") as refused:
        export_policy(to, policy, tmp_path / "exported")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["record.hidden_states=64", "decode.gen_length=512"], "record.hidden_states=64 may take .* at most 32 with"),
        (["record.hidden_states=-1"], "record.hidden_states=-1"),
        (["record.hidden_states=8", "filter=mlp"], "filter=mlp sees confidences alone"),
        (["record.top_tokens=true", "filter=conv"], "only the attention of filter=transformer reads them"),
        (["record.top_tokens=true", "filter_options.same_proposal=false"], "overlap=True stands in place of"),
    ],
)
def test_numbers_that_cannot_be_kept_are_refused(given, named):
    def check():
        config = load_config("tiny_filter", ["train.start=scratch", *given])
        check_hidden(config)
        check_training(config)

    with pytest.raises(UserError, match=named):
        check()


def test_a_run_records_trains_and_exports_them(tiny_model_folder, tmp_path, capsys):
    arguments = [
        "config=tiny_filter",
        f"model.path={tiny_model_folder}",
        "record.hidden_states=4",
        "record.top_tokens=true",
        "train.start=scratch",
        "train.rounds=0",
        "record.labels=reference",
        "train.predictors=[]",
        "train.max_epochs=1",
        "data.train_prompts=6",
        "data.validation_prompts=6",
        "data.test_prompts=3",
        "decode.gen_length=24",
        "decode.block_length=8",
        "calibrate.target_agreement=0.2",
        "calibrate.max_accuracy_drop=null",
        "calibrate.thresholds=[0.5]",
        "model.device=cpu",
        "threads=1",
        f"output_dir={tmp_path / 'out'}",
    ]
    assert cli.run([*arguments, "--dry-run"]) == 0
    assert f"hidden:   at most {24 * 8 * 4 * 2 / 1e3:.3g} kB of the disk" in capsys.readouterr().out
    assert cli.run([*arguments, "stages=[record,train,calibrate]"]) == 0
    recording = Recording.load(tmp_path / "out" / "records")
    assert [recording.description[name] for name in ("schema", "hidden_states", "top_tokens")] == [3, 4, 4]
    assert recording.columns(0, ("hidden",), "train")["hidden"].dtype == torch.float16
    policy = load_policy(tmp_path / "out" / "policy")
    assert policy.predictor.network.overlap
    assert policy.predictor.network.hidden_map.equal(hidden_map(WIDTH, 4))
    Method(policy, BlocksScheduler(8)).check(load_model(str(tiny_model_folder), device="cpu").spec)
    reinforced = ["stages=[reinforce]", f"policy={tmp_path / 'out' / 'policy'}", f"output_dir={tmp_path / 'more'}"]
    assert cli.run([*arguments, *reinforced]) == 2
    assert "reads hidden states of the model" in capsys.readouterr().err
