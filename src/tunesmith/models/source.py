"""From the name of a model to a local folder whose files are safe to load.

    builtin:seedling · folder · ORG/NAME · modelscope:ORG/NAME · run folder · adapter folder
                      └─▶ Found(base folder, adapter folder or None, run or None)

Weights are safetensors or nothing; no code that comes with a model is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open

from tunesmith import builtin
from tunesmith.core.problem import Problem, missing_extra
from tunesmith.core.rundir import RunDir

if TYPE_CHECKING:
    from tunesmith.models.heads import HeadSpec, Kind

PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
HEAD_WEIGHTS = ("score.weight", "classifier.weight", "out_proj.weight")
LOADERS = ("transformers_weights", "configuration_files")
"""Keys of config.json that send transformers to files other than the ones that are looked through here."""
TASKS: dict[str, Kind] = {
    "SEQ_CLS": "score",
    "TOKEN_CLS": "tags",
    "FEATURE_EXTRACTION": "states",
}
"""What an adapter is for, in PEFT's words, and the head that it needs; next tokens for all others."""
HEAD_FILE = "head.json"
"""Beside an adapter: the settings of transformers' configurations that its head needs, such as id2label."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine.

    name: what the base is called elsewhere (a hub's id, a builtin's name, or its folder); base: folder with the
    configuration and the weights; adapter: folder with a PEFT adapter over it; run: the run folder that it came from.
    """

    name: str
    base: Path
    adapter: Path | None = None
    run: RunDir | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder whose tokenizer and template belong to the model: a result's own before its base's."""
        own = self.adapter
        return own if own is not None and (own / "tokenizer_config.json").is_file() else self.base


def head_of(found: Found) -> HeadSpec:
    """Which last layer a model on disk has, and for which labels.

    The labels over an adapter stand in a file beside it; an adapter without one has those of its base, or as many
    numbered ones as its head has rows.
    """
    from tunesmith.models.heads import KINDS, HeadSpec
    from tunesmith.models.sentences import saved_pooling

    config = read_json(found.base / "config.json")
    architectures = [str(name) for name in config.get("architectures") or ()]
    bare = bool(architectures) and not any("For" in name or "LMHead" in name for name in architectures)
    own: Kind = "states" if bare else "lm"
    for kind, end in KINDS.items():
        own = kind if any(name.endswith(end) for name in architectures) else own
    pooling = saved_pooling(found.base)
    base = HeadSpec.saved(own, config) if own in KINDS else HeadSpec("states" if pooling else own, pooling=pooling)
    if found.adapter is None:
        return base
    kind = TASKS.get(str(read_json(found.adapter / "adapter_config.json").get("task_type")), "lm")
    if (found.adapter / HEAD_FILE).is_file():
        return HeadSpec.saved(kind, read_json(found.adapter / HEAD_FILE))
    if kind == "states":
        return HeadSpec(kind, pooling=saved_pooling(found.adapter) or pooling)
    if kind not in KINDS or kind == base.kind:
        return base if kind == base.kind else HeadSpec(kind)
    return HeadSpec.saved(kind, {"id2label": dict.fromkeys(range(_outputs(found.adapter)))})


def _outputs(adapter: Path) -> int:
    """Rows of the head that an adapter holds; transformers' default of two where it holds none."""
    with safe_open(adapter / "adapter_model.safetensors", framework="np") as tensors:
        named = [name for name in tensors.keys() if name.endswith(HEAD_WEIGHTS)]  # noqa: SIM118 (no mapping)
        return int(tensors.get_slice(named[-1]).get_shape()[0]) if named else 2


def is_encoder_decoder(found: Found) -> bool:
    """Whether a model on disk reads prompts with an encoder and writes answers with a decoder."""
    from transformers import CONFIG_MAPPING

    config = read_json(found.base / "config.json")
    usual = getattr(CONFIG_MAPPING[str(config.get("model_type"))], "is_encoder_decoder", False)
    return bool(config.get("is_encoder_decoder", usual))


def find(path: str, revision: str | None = None) -> Found:
    """Fetch what is not here yet, look through runs and adapters, and check the files.

    Raises:
        Problem: nothing by that name, no usable weights, or files that would run code.
    """
    return _find(path, revision, ())


def _find(path: str, revision: str | None, before: tuple[Path, ...]) -> Found:
    """before: the folders that led to this one."""
    folder = _folder(path, revision)
    if folder in before:
        raise Problem(str(folder), "leads back to itself, so there is no base model", "Name the base model in it")
    run = RunDir(folder)
    if run.is_run():
        if not run.model.is_dir():
            raise Problem(path, "this run has no model yet (it did not finish)", f"Finish it: tunesmith resume {path}")
        inner = _find(str(run.model), None, (*before, folder))
        return Found(inner.name, inner.base, inner.adapter, run)
    if (folder / "adapter_config.json").is_file():
        fetched = not Path(path).expanduser().is_dir()
        return _adapter(folder, before, fetched)
    _check_config(folder)
    check_files(folder)
    return Found(str(folder) if Path(path).expanduser().is_dir() else path, folder)


def fetch(path: str, revision: str | None = None) -> Path:
    """The folder of a name as it is, fetched where it is not here yet; nothing in it is looked at.

    Raises:
        Problem: there is nothing by that name.
    """
    return _folder(path, revision)


def check_files(folder: Path) -> None:
    """Check a model's files without the heavy libraries: whole safetensors, all that the index names.

    Raises:
        Problem: weights that are pickles, cut short or missing.
    """
    _check_weights(folder, "*.safetensors")
    _check_index(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that came with a model.

    Raises:
        Problem: not there, not JSON, not an object.
    """
    if path.exists() and not path.is_file():
        raise Problem(str(path), "is no regular file", "The model's folder is damaged; fetch it again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(str(path), f"cannot be read ({error.strerror})", "The model's folder is not complete") from error
    except (ValueError, RecursionError) as error:
        raise Problem(str(path), f"is not JSON ({error})", "The model's folder is damaged; fetch it again") from error
    if not isinstance(value, dict):
        raise Problem(str(path), "holds no JSON object", "The model's folder is damaged; fetch it again")
    return value


def _folder(path: str, revision: str | None) -> Path:
    if path.startswith("builtin:"):
        return builtin.path(path.removeprefix("builtin:"))
    if path.startswith("modelscope:"):
        return _from_modelscope(path.removeprefix("modelscope:"), revision)
    local = Path(path).expanduser()
    try:
        is_folder, is_file = local.is_dir(), local.is_file()
    except OSError as error:
        raise Problem(path[:80], f"is no path and no id ({error.strerror})", "Check the path") from error
    if is_folder:
        return local.resolve()
    if is_file:
        raise Problem(path, "is a file, and a model is a folder", "Give the folder that the file is in")
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise Problem(path, "there is no such folder", "Check the path, or give a model's id such as ORG/NAME")
    return _from_hub(path, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except LocalEntryNotFoundError as error:
        raise Problem(
            name,
            "is not a folder here, is not in the local cache, and the hub cannot be reached",
            "Check the spelling and the network; HF_HOME says where the cache is, HF_ENDPOINT names a mirror",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Problem(
            name,
            f"cannot be fetched from the hub ({reason})",
            "Check the spelling; a gated model needs `hf auth login`",
        ) from error


def _from_modelscope(name: str, revision: str | None) -> Path:
    try:
        from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_extra("modelscope", "modelscope") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except Exception as error:  # the client raises many kinds; each means that the model was not fetched
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Problem(
            f"modelscope:{name}",
            f"cannot be fetched ({reason})",
            "Check the spelling and the network; MODELSCOPE_CACHE says where the cache is",
        ) from error


def _adapter(folder: Path, before: tuple[Path, ...], fetched: bool) -> Found:
    config = read_json(folder / "adapter_config.json")
    if config.get("auto_mapping"):
        raise Problem(
            str(folder / "adapter_config.json"),
            "names classes to import (auto_mapping), which is code of the adapter's author",
            "Take the key out if you trust the weights",
        )
    _check_weights(folder, "adapter_model.safetensors")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise Problem(str(folder), "the adapter does not say which model it belongs to", "Set base_model_name_or_path")
    if fetched and (base.startswith((".", "/", "~")) or ".." in Path(base).parts or Path(base).exists()):
        raise Problem(
            str(folder / "adapter_config.json"),
            f"comes from a hub and names a folder of this machine as its base ({base[:80]!r})",
            "Put the model's id on a hub into base_model_name_or_path if you trust the adapter",
        )
    revision = config.get("revision")
    inner = _find(base, revision if isinstance(revision, str) else None, (*before, folder))
    if inner.adapter is not None:
        raise Problem(
            str(folder), f"is an adapter over another adapter ({base})", "Fold that one first: tunesmith fold"
        )
    return Found(inner.name, inner.base, folder)


def _check_config(folder: Path) -> None:
    from transformers import CONFIG_MAPPING

    file = folder / "config.json"
    config = read_json(file)
    if str(config.get("model_type")) not in CONFIG_MAPPING:
        code = "it needs code of its author, which is never run" if "auto_map" in config else "transformers has none"
        raise Problem(
            str(file),
            f"the architecture {config.get('model_type')!r} is not known: {code}",
            "Use a model whose architecture transformers has",
        )
    if private := sorted(set(_loading_keys(config))):
        raise Problem(
            str(file),
            f"sets {', '.join(private)}, which can load code or files from elsewhere",
            "Take these keys out; tunesmith chooses attention and weights itself",
        )
    if "quantization_config" in config:
        _check_quantization(file, config["quantization_config"])


def _check_quantization(file: Path, value: Any) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    known = sorted({name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING})
    method = cast("dict[str, Any]", value).get("quant_method") if isinstance(value, dict) else None
    if str(method) not in known:
        what = f"quantization_config names the method {method!r}, which transformers does not know"
        raise Problem(str(file), what, f"Known: {', '.join(known)}")


def _loading_keys(config: dict[str, Any]) -> Iterator[str]:
    """Keys anywhere in a configuration by which transformers fetches kernels or opens other files."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += cast("list[Any]", value)
        if not isinstance(value, dict):
            continue
        for key, inner in cast("dict[str, Any]", value).items():
            waiting.append(inner)
            if key in LOADERS or ("_implementation" in f"_{key}" and not isinstance(inner, bool | None)):
                yield key


def _check_weights(folder: Path, pattern: str) -> None:
    files = sorted(folder.glob(pattern))
    if not files:
        pickles = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
        if pickles:
            raise Problem(
                str(folder),
                f"its weights are pickles ({', '.join(pickles[:3])}), which can run code when they are read",
                "Ask for safetensors, or convert them on a machine that you can lose",
            )
        raise Problem(str(folder), f"holds no weights ({pattern})", "The folder is not a model or not complete")
    for file in files:
        _check_header(file)


def _check_header(file: Path) -> None:
    """A safetensors header that lies about sizes is found before a model is built on it."""
    if not file.is_file():
        raise Problem(str(file), "is no regular file", "The folder is damaged; fetch it again")
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise Problem(
            str(file), f"is not a whole safetensors file ({error})", "It is cut short or damaged; fetch it again"
        ) from error


def _check_index(folder: Path) -> None:
    """The index of shards names safetensors files of this folder and nothing else."""
    file = folder / "model.safetensors.index.json"
    if not file.is_file() or (folder / "model.safetensors").is_file():
        return
    names = read_json(file).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise Problem(str(file), "names no shards", "The model's folder is damaged; fetch it again")
    shards = {file.name for file in folder.glob("*.safetensors")}
    if wrong := sorted({str(name) for name in names.values()} - shards):
        raise Problem(
            str(file),
            f"names {', '.join(wrong[:3])}, no safetensors file of this folder",
            "The folder is not complete; fetch it again",
        )
