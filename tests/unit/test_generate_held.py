"""Weights in few bits: products, rounding, and models that answer with them, against their matrices written out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from made_benches import tiny_codec, tiny_folder, tiny_model
from made_digits import coarser
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import ModelSpec
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.local import Local
from tunesmith.generate.held import Rounded, hold, is_rounded
from tunesmith.generate.products import GROUP, Nibbles
from tunesmith.generate.rounding import in_eight_bits, in_four_bits
from tunesmith.generate.sampling import Sampling
from tunesmith.models.whole import WIDE, Digit, Whole, lacking, widest

if reason := lacking():
    pytest.skip(reason, allow_module_level=True)

ASKS: list[Ask] = [
    Chat((Message("user", "hello"),)),
    Chat((Message("system", "Be kind."), Message("user", "the thing in the thing, and a longer question"))),
    Text("hello the"),
]
LORA = {"r": 4, "lora_alpha": 16, "init_lora_weights": False, "target_modules": "all-linear"}


def matrix(count: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw) * torch.rand(count, 1, generator=draw)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def written_out(model: nn.Module) -> nn.Module:
    """The oracle: a held model's copy whose layers are plain ones over the rounded matrices."""
    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, Rounded):
            kind = Conv1D if layer.across else nn.Linear
            made = kind(1, 1)
            made.weight = nn.Parameter(layer.weight, requires_grad=False)
            made.bias, made.nf = layer.bias, layer.out_features  # type: ignore[assignment]
            plain.set_submodule(name, made)
    return plain


def logits(model: nn.Module) -> Tensor:
    tokens = torch.arange(3, 15).view(2, 6)
    sides = {"decoder_input_ids": tokens[:, :4]} if model.config.is_encoder_decoder else {}  # type: ignore[union-attr]
    with torch.no_grad():
        return model.eval()(input_ids=tokens, **sides).logits


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
@pytest.mark.parametrize(("count", "width"), [(1, 32), (70, 96), (64, 320), (33, 50)])
@pytest.mark.parametrize("make", [in_eight_bits, in_four_bits])
def test_a_product_is_that_of_the_matrix_written_out(  # type: ignore[no-untyped-def]
    digit: Digit, make, rows: int, count: int, width: int
) -> None:
    states = matrix(rows, width, seed=1)
    states[0, 0] = 50.0  # an outlier, beside which 8 bits would lose the rest
    made = make(matrix(count, width))
    fused = isinstance(made, Nibbles) and rows <= made.few
    assert off(made(states), states.double() @ made.plain().double().T) < (1e-2 if fused else 5e-4 * coarser(digit, 2))


@pytest.mark.usefixtures("digit")
def test_a_matrix_is_written_out_as_its_whole_numbers() -> None:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (20, 48), generator=draw, dtype=torch.int8)
    scales = torch.rand(20, generator=draw)
    torch.testing.assert_close(Whole(codes, scales).plain(), codes * scales[:, None], rtol=1e-5, atol=0)


@pytest.mark.usefixtures("digit")
def test_rows_do_not_know_of_each_other() -> None:
    made, states = in_eight_bits(matrix(40, 64)), matrix(5, 64, seed=1)
    states[1] *= 1000
    states[2] = torch.nan
    found = made(states)
    assert found[2].isnan().all()
    for row in (0, 1, 3, 4):
        assert torch.equal(found[row], made(states[row : row + 1])[0])


@pytest.mark.usefixtures("digit")
def test_rows_of_zeros_are_zeros() -> None:
    weights = matrix(16, 64)
    weights[3] = 0
    for made in (in_eight_bits(weights), in_four_bits(weights)):
        assert not made.plain()[3].any()
        assert not made(torch.zeros(2, 64)).any()


@pytest.mark.usefixtures("digit")
def test_eight_bits_are_within_half_a_step() -> None:
    weights = matrix(30, 200)
    step = weights.abs().amax(1, keepdim=True) / 127
    assert ((in_eight_bits(weights).plain() - weights).abs() <= 0.502 * step).all()


def test_four_bits_are_better_than_the_largest_number_as_the_scale() -> None:
    weights = matrix(40, 256)
    groups = weights.unflatten(1, (-1, GROUP))
    step = groups.abs().amax(-1, keepdim=True) / 7
    plain = ((groups / step).round() * step - groups).norm()
    assert (in_four_bits(weights).plain() - weights).norm() < 0.98 * plain


def test_both_products_of_four_bits_are_of_one_matrix(digit: Digit) -> None:
    made = in_four_bits(matrix(70, 128))
    assert isinstance(made, Nibbles)
    size = digit.largest(2)  # of which two digits lose nothing
    unit = torch.eye(128) * size
    few = torch.cat([made(unit[row : row + 1]) for row in range(128)])
    assert torch.equal(few, made.whole(unit).bfloat16().float())
    torch.testing.assert_close(few / size, made.plain().T, rtol=2**-8, atol=0)


def families() -> Iterator[tuple[str, str]]:
    for family in [*tiny.FAMILIES, *tiny.PADDED_FAMILIES, *tiny.SIDES_FAMILIES]:
        yield family, "int8"
    yield from (("llama", "int4"), ("gpt2", "int4"), ("bart", "int4"))


@pytest.mark.parametrize(("family", "weights"), families())
def test_a_held_model_computes_with_its_rounded_matrices(family: str, weights: str) -> None:
    model = tiny.model(family)
    model.requires_grad_(False)
    plain = logits(model)
    assert hold(model, weights) > 0  # type: ignore[arg-type]
    expected = logits(written_out(model))
    found = logits(model)
    assert 0 < off(found, expected) < 0.1 * off(found, plain)


def test_int8_answers_are_those_of_the_rounded_matrices() -> None:
    model = tiny_model().requires_grad_(False)
    hold(model, "int8")
    sampling = Sampling(max_tokens=12 if widest() == WIDE else 8)  # the tenth is a tie to 14 bits
    oracle = Local().bind(written_out(model), tiny_codec())
    assert list(Local().bind(model, tiny_codec()).answers(ASKS, sampling, 3)) == list(oracle.answers(ASKS, sampling, 3))


def test_layers_beside_each_other_become_one_product() -> None:
    model = tiny.model("llama").requires_grad_(False)
    hold(model, "int8")
    attention = model.model.layers[0].self_attn  # type: ignore[union-attr]
    assert attention.q_proj.joint is attention.k_proj.joint is attention.v_proj.joint
    states = torch.randn(1, 2, attention.q_proj.in_features)
    kept = attention.k_proj(states)
    attention.q_proj(states)
    states *= 2  # another input in the same place
    torch.testing.assert_close(attention.k_proj(states), 2 * kept, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_an_adapter_stands_beside_the_rounded_base(family: str, kind: str) -> None:
    model = tiny.model(family)
    if kind == "ia3":
        config = IA3Config(target_modules="all-linear", feedforward_modules=[], init_ia3_weights=False)
    else:
        config = LoraConfig(**LORA, use_dora=kind == "dora")  # type: ignore[arg-type]
    adapted = get_peft_model(model, config).eval().requires_grad_(False)
    own = {name: part.clone() for name, part in adapted.named_parameters() if "lora_" in name or "ia3" in name}
    bare = hold(copy.deepcopy(adapted), "plain")
    assert bare == 0
    hold(adapted, "int8")
    oracle = written_out(adapted)
    kept = dict(adapted.named_parameters())
    assert own and all(torch.equal(part, kept[name]) for name, part in own.items())
    assert off(logits(adapted), logits(oracle)) < 1e-3
    with adapted.disable_adapter(), oracle.disable_adapter():  # type: ignore[operator]
        assert off(logits(adapted), logits(oracle)) < 1e-3


def test_answers_follow_an_adapter_that_learns() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(**LORA))  # type: ignore[arg-type]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    answers = Local(weights="int8").follow(model, tiny_codec())
    sampling = Sampling(max_tokens=8)
    first = list(answers.answer(ASKS, sampling))
    assert not any(isinstance(part, Rounded) for part in model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.5 * torch.randn_like(weight)) if "lora_B" in name else None
    second = list(answers.answer(ASKS, sampling))
    fresh = Local(weights="int8").follow(model, tiny_codec())
    assert second == list(fresh.answer(ASKS, sampling)) != first


def adapted(**more: object) -> PeftModel:
    return get_peft_model(tiny_model(), LoraConfig(**LORA, **more))  # type: ignore[arg-type]


def test_what_cannot_be_held_is_refused() -> None:
    with pytest.raises(Problem, match="must not learn"):
        Local(weights="int8").follow(tiny_model(), tiny_codec())
    with pytest.raises(Problem, match="draws from another distribution"):
        Local(weights="int4").follow(adapted(), tiny_codec())
    with pytest.raises(Problem, match="no linear layers"):
        hold(tiny_model().requires_grad_(), "int8", learns=True)
    with pytest.raises(Problem, match="is on meta"):
        hold(tiny_model().requires_grad_(False).to("meta"), "int8")  # type: ignore[arg-type]
    held: PreTrainedModel = tiny_model().requires_grad_(False)
    hold(held, "int8")
    with pytest.raises(Problem, match="few bits already"):
        hold(held, "int4")


def test_a_folder_is_opened_in_few_bits(tmp_path: Path) -> None:
    spec = ModelSpec(path=str(tiny_folder(tmp_path / "model")), device="cpu", dtype="float32")
    sampling = Sampling(max_tokens=6)
    opened = Local(weights="int8").open(spec)
    assert isinstance(opened.base.lm_head, Rounded)
    oracle = Local().bind(written_out(opened.base), opened.codec)
    assert list(opened.answer(ASKS, sampling)) == list(oracle.answer(ASKS, sampling))


def test_conv1d_is_written_out_as_it_lies() -> None:
    model = tiny.model("gpt2").requires_grad_(False)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, Conv1D)}
    hold(model, "int8")
    assert layers
    for name, layer in layers.items():
        made = model.get_submodule(name)
        assert isinstance(made, Rounded)
        assert off(made.weight, layer.weight) < 0.01


def test_a_rounded_model_is_known_by_its_layers() -> None:
    """Trials of its answers then allow for the last digit of activations."""
    model = tiny_model()
    assert not is_rounded(model)
    hold(model, "int8")
    assert is_rounded(model)
