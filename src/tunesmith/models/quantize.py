"""A frozen base in 4 or 8 bits: which library holds it, what it takes, and how it is written out again.

    matrix W ─▶ codes and scales ─▶ W~ written out at each use ─▶ product in `dtype`

    nf4, fp4   16 levels, a scale for each 64 weights, the scales in 8 bits themselves (QLoRA, arXiv:2305.14314)
    int8       256 levels, a scale for each row; on an NVIDIA GPU LLM.int8 (arXiv:2208.07339)

Only the matrices of linear layers are held so; embeddings, norms and the last layer stay as they are, and what learns
stands beside in float32. A base may also come quantised in its files; then it is held as it came.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from packaging.version import Version
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from tunesmith.core.problem import Problem, missing_extra
from tunesmith.core.run import ModelSpec
from tunesmith.core.yaml_file import read_yaml
from tunesmith.models.device import Choice, choose
from tunesmith.models.heads import head_parts
from tunesmith.models.source import Found, read_json

BLOCK = 64
"""Weights that share a scale in 4 bits."""

_OTHER_IN_USE = "bitsandbytes' int8 computes other numbers in use than in training on a CPU"
_ITS_KIND = "which PEFT trains over in 4 bits"

HOLDERS = {
    **{(kind, device): ("bitsandbytes", _ITS_KIND) for kind in ("nf4", "fp4") for device in ("cpu", "cuda")},
    ("int8", "cpu"): ("torchao", _OTHER_IN_USE),
    ("int8", "cuda"): ("bitsandbytes", "LLM.int8 multiplies in 8 bits and keeps outliers in 16"),
}
"""Which library holds a kind on a device, and why."""

PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
    "hqq": "hqq",
    "aqlm": "aqlm",
    "eetq": "kernels",
    "auto-round": "auto_round",
}
"""The package that opens models whose files are quantised by a method."""


OLDEST = {"bitsandbytes": "0.49", "torchao": "0.18"}
"""The oldest versions of these packages that are known to work."""


@dataclass(frozen=True, slots=True)
class Held:
    """How a base is held.

    own: its files came so; why: the reason of the library, for a person; still: why nothing trains over it, or empty;
    file_bytes: of the files that came so.
    """

    kind: str
    library: str
    own: bool
    why: str
    still: str = ""
    file_bytes: int = 0

    @property
    def four_bits(self) -> bool:
        """Whether it is one of bitsandbytes' 4-bit kinds."""
        return self.kind in ("nf4", "fp4")


@dataclass(frozen=True, slots=True)
class Place:
    """Where and in which type a model computes, and how its base is held; None as plain weights."""

    choice: Choice
    held: Held | None


def settle(spec: ModelSpec, found: Found) -> Place:
    """Device, number type and quantisation of a model, before any weight is read.

    Raises:
        Problem: a kind that this device or these files cannot have, or a package that is not installed.
    """
    choice = choose(spec.device, spec.dtype)
    held = _held(spec.quantize, found, choice.device)
    if held is None:
        return Place(choice, None)
    if held.four_bits and spec.dtype == "auto" and choice.device.type == "cpu":
        choice = _timed(choice, held)
    return Place(choice, held)


def asked(spec: ModelSpec, found: Found) -> str:
    """`nf4`, `fp4`, `int8` or `none`: what the run asks for, or the run did that the adapter comes from."""
    if spec.quantize != "auto":
        return spec.quantize
    if found.run is None or found.adapter is None:
        return "none"
    value, _ = read_yaml(found.run.run_file)
    model: Any = cast("Mapping[str, Any]", value).get("model") if isinstance(value, dict) else None
    before = cast("Mapping[str, Any]", model).get("quantize", "none") if isinstance(model, dict) else "none"
    return "none" if before == "auto" else str(before)


def layers(model: PreTrainedModel, held: Held) -> dict[str, nn.Module]:
    """The layers of a plain model, or its skeleton, that would be held in few bits; by name.

    Raises:
        Problem: there are none.
    """
    kinds = (nn.Linear, Conv1D) if held.library == "bitsandbytes" else (nn.Linear,)
    skipped = left_plain(model)
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    chosen = {name: part for name, part in modules if type(part) in kinds and should_convert_module(name, skipped)}
    if not chosen and not held.own:
        raise Problem(
            "model.quantize",
            f"{held.library} holds linear layers in {held.kind}, and {type(model).__name__} has none of its kind",
            "Use nf4, or leave it out",
        )
    return chosen


def left_plain(model: PreTrainedModel) -> list[str]:
    """Names of layers that stay plain: the last one, what is tied to the embeddings, and what the model keeps so."""
    heads = [part for head in head_parts(model).values() for part in head.modules()]
    ends = [end for end in (model.get_output_embeddings(), *heads) if isinstance(end, nn.Module)]
    names = {name for name, module in model.named_modules() if any(module is end for end in ends)}
    return sorted({*names, *(getattr(model, "_keep_in_fp32_modules", None) or ())})


def share(model: PreTrainedModel, held: Held) -> str:
    """How much of a model is held in few bits, for a person."""
    chosen = layers(model, held)
    inside = sum(cast(Tensor, part.weight).numel() for part in chosen.values())
    whole = sum(weight.numel() for weight in model.parameters())
    return f"{len(chosen)} layers with {inside / whole:.0%} of the weights"


def saved_bytes(model: PreTrainedModel, held: Held, dtype: torch.dtype) -> int:
    """Bytes that a skeleton's weights take less than as plain weights of a type.

    Of files that came in a form that is not reckoned here, their size counts.
    """
    if held.own and held.library not in ("bitsandbytes", "torchao"):
        return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize - held.file_bytes
    weights = [cast(Tensor, part.weight) for part in layers(model, held).values()]
    return sum(weight.numel() * dtype.itemsize - _bytes(weight, held, dtype) for weight in weights)


def written_bytes(model: PreTrainedModel, held: Held, dtype: torch.dtype) -> int:
    """Bytes of the largest matrix while it is written out for a product."""
    return max((cast(Tensor, part.weight).numel() for part in layers(model, held).values()), default=0) * dtype.itemsize


def loading(model: PreTrainedModel, held: Held, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs to hold a model so; model: its skeleton."""
    if held.own:
        return {}
    return {"quantization_config": _config(held, left_plain(model), dtype)}


def steady(model: nn.Module, dtype: torch.dtype) -> None:
    """Compute in one type, and the same in training and in use.

    bitsandbytes repacks 4-bit weights on a CPU the first time they are used without gradients; the gradients of later
    steps are then wrong. So they are never repacked.
    """
    for module in cast("Iterator[Any]", model.modules()):
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype, True


def write_out(model: PreTrainedModel) -> PreTrainedModel:
    """Replace each layer that is held in few bits by the plain layer that computes the same, in float32, in place."""
    for name, module in list(model.named_modules()):
        weight = plain_weight(module)
        if weight is not None:
            model.set_submodule(name, _plain_layer(module, weight.float()))
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.float()
    for name in ("quantization_config", "_pre_quantization_dtype"):
        vars(model.config).pop(name, None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(name, None)
    conversions: list[Any] = getattr(model, "_weight_conversions", None) or []
    vars(model)["_weight_conversions"] = [each for each in conversions if not _reads_few_bits(each)]
    return model


def _reads_few_bits(conversion: Any) -> bool:
    """Whether transformers would put weights back into few bits by it when the model is saved."""
    return any(hasattr(step, "hf_quantizer") for step in getattr(conversion, "operations", None) or ())


def plain_weight(module: nn.Module) -> Tensor | None:
    """The matrix [out, in] that a layer held in few bits stands for; None for any other module."""
    weight: Any = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind == "Params4bit" and getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32
        return dequantize_4bit(weight.data, state)
    if kind == "Int8Params":
        state: Any = module.state
        codes, scales = (weight.data, weight.SCB) if weight.SCB is not None else (state.CB, state.SCB)
        return codes.float() * (scales.float()[:, None] / 127)
    if isinstance(module, nn.Linear) and hasattr(weight, "dequantize") and hasattr(weight, "tensor_data_names"):
        return weight.dequantize()
    return None


def count(model: nn.Module) -> int:
    """How many weights a model has, however they are held."""
    shapes = (getattr(getattr(weight, "quant_state", None), "shape", weight.shape) for weight in model.parameters())
    return sum(shape.numel() for shape in shapes)


def is_held(model: nn.Module) -> bool:
    """Whether any layer of a model is held in few bits."""
    return any(_is_held(module) for module in model.modules())


def _is_held(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return type(weight).__name__ in ("Params4bit", "Int8Params") or hasattr(weight, "tensor_data_names")


def _held(quantize: str, found: Found, device: torch.device) -> Held | None:
    own = read_json(found.base / "config.json").get("quantization_config")
    if isinstance(own, dict):
        return _own(cast("dict[str, Any]", own), quantize, found, device)
    wanted = asked(ModelSpec(path="", quantize=cast(Any, quantize)), found)
    if wanted == "none":
        return None
    holder = HOLDERS.get((wanted, device.type))
    if holder is None:
        raise Problem("model.quantize", f"{wanted} is not known to work on {device.type}", "Set model.device to cpu")
    _check_installed(holder[0])
    return Held(wanted, holder[0], False, holder[1])


def _own(config: Mapping[str, Any], quantize: str, found: Found, device: torch.device) -> Held:
    """What the files say of their own quantisation."""
    method = str(config.get("quant_method"))
    if quantize != "auto":
        raise Problem(
            "model.quantize",
            f"is {quantize}, and the files of {found.name} are quantised already ({method})",
            "Leave it out, or start from the plain model",
        )
    package = PACKAGES.get(method)
    if package in OLDEST:
        _check_installed(package)
    elif package and importlib.util.find_spec(package) is None:
        raise Problem(
            found.name,
            f"its files are quantised with {method}, and the package {package} that opens them is not installed",
            f"Install it with: pip install {package.replace('_', '-')}",
        )
    size = sum(file.stat().st_size for file in found.base.glob("*.safetensors"))
    kind, still = method, ""
    if method == "bitsandbytes" and config.get("load_in_4bit"):
        kind = str(config.get("bnb_4bit_quant_type", "fp4"))
    elif method == "bitsandbytes":
        kind, still = "int8", _OTHER_IN_USE if device.type == "cpu" else ""
    return Held(kind, method, True, "its files came so", still, size)


def _check_installed(package: str) -> None:
    """Raises: Problem: a package that holds weights in few bits is missing, or too old to be known here."""
    if importlib.util.find_spec(package) is None:
        raise missing_extra("quantize", package)
    version = importlib.metadata.version(package)
    if Version(version) < Version(OLDEST[package]):
        what = f"is {version} here, and {OLDEST[package]} is the oldest that is known to work"
        raise Problem(f"package {package}", what, f"Install a newer one: pip install --upgrade {package}")


def _bytes(weight: Tensor, held: Held, dtype: torch.dtype) -> int:
    """Bytes of a matrix in few bits, with its scales."""
    count = weight.numel()
    if held.four_bits:
        blocks = -(-count // BLOCK)
        return -(-count // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
    return count + int(weight.shape[0]) * (4 if held.library == "bitsandbytes" else dtype.itemsize)


def _config(held: Held, skipped: list[str], dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig:
    if held.library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    if held.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type=held.kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _plain_layer(module: nn.Module, weight: Tensor) -> nn.Module:
    """A layer of the kind that the architecture had, with a written-out matrix [out, in]."""
    bias = cast("Tensor | None", getattr(module, "bias", None))
    if getattr(module, "source_cls", None) is Conv1D:
        made: Any = Conv1D(weight.shape[0], weight.shape[1])
        weight = weight.T.contiguous()
    else:
        with torch.device("meta"):
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias.data.float(), requires_grad=False)
    return made.train(module.training)


def _timed(choice: Choice, held: Held) -> Choice:
    """The number type in which a layer held so learns fastest here, measured (some 50 ms)."""
    times = {kind: _step_seconds(held, kind) for kind in (torch.float32, torch.bfloat16)}
    faster = times[torch.float32] / times[torch.bfloat16]
    kind = torch.bfloat16 if faster > 1.2 else torch.float32
    why = f"a layer in {held.kind} runs in bfloat16 at {faster:.1f} times its speed in float32 here (measured)"
    return replace(choice, dtype=kind, reasons=(choice.reasons[0], f"dtype {str(kind)[6:]}: {why}"))


def _step_seconds(held: Held, kind: torch.dtype) -> float:
    """Seconds of a forward and backward pass through one layer, the best of a few."""
    from bitsandbytes.nn.modules import Linear4bit

    layer = Linear4bit(1024, 1024, bias=False, compute_dtype=kind, quant_type=held.kind).to("cpu")
    inputs = torch.ones(256, 1024, dtype=kind, requires_grad=True)
    return min(_passes(layer, inputs))


def _passes(layer: nn.Module, inputs: Tensor) -> Iterator[float]:
    for _ in range(4):
        start = time.perf_counter()
        layer(inputs).sum().backward()
        yield time.perf_counter() - start
