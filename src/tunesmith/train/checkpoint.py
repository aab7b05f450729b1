"""Checkpoints that survive a crash: a staging folder, fsync, a manifest of hashes last, then a rename.

    checkpoints/step-000120/   (best-000100/ holds the weights of the lowest validation loss)
      weights.safetensors      what learns, by name
      method.safetensors       what else a method changes, where it does
      optimizer.safetensors    the optimizer's tensors as "group-number.name"; its numbers are in state.json
      random.safetensors       states of the random generators, as bytes
      round.safetensors        what a step that was begun still learns from, where it was sampled
      state.json               step, tokens, best so far, what was skipped …
      manifest.json            name, size and SHA-256 of each file, format version, fingerprints

A folder without a valid manifest is no checkpoint. No pickle is written or read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tunesmith.core.problem import Problem
from tunesmith.core.rundir import sync_file, sync_folder
from tunesmith.methods import Method, trainable
from tunesmith.objectives import Round
from tunesmith.train.disk import FULL, code_of, full
from tunesmith.train.rounds import outline, restored

FORMAT = 1
MANIFEST = "manifest.json"
DIGEST = "sha256"
STAGING = ".staging"
WEIGHTS, OPTIMIZER, RANDOM, STATE = "weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
METHOD, ROUND = "method.safetensors", "round.safetensors"


@dataclass(frozen=True, slots=True)
class Learned:
    """What training changes: the weights that learn, by name, and what the method keeps beside them."""

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    method: Method | None = None

    @classmethod
    def of(cls, model: nn.Module, method: Method | None = None, beside: nn.Module | None = None) -> Learned:
        """Everything of a model that requires gradients now; beside: what the objective has learn with it."""
        others = {} if beside is None else {f"beside.{name}": weight for name, weight in trainable(beside).items()}
        return cls(model, {**trainable(model), **others}, method)

    @property
    def bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.weights.values())

    def beside(self) -> dict[str, Tensor]:
        """What the method keeps beside the weights."""
        return self.method.state(self.model) if self.method else {}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk whose manifest was read."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


def save(
    folder: Path,
    learned: Learned,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    begun: Round | None = None,
) -> Checkpoint:
    """Publish a checkpoint at `folder`, or leave nothing behind.

    optimizer: None for weights only; state: the loop's own numbers; facts: fingerprints and versions; begun: the round
    of the step that was begun.

    Raises:
        Problem: the disk is full; older checkpoints are untouched.
    """
    for left in folder.parent.glob(f".*{STAGING}"):
        shutil.rmtree(left)
    staging = folder.with_name(f".{folder.name}{STAGING}")
    try:
        _check_space(folder.parent, learned, optimizer)
        staging.mkdir(parents=True)
        _write_parts(staging, learned, optimizer, state, begun)
        _write_manifest(staging, state, facts)
        _publish(staging, folder)
    except (OSError, SafetensorError) as error:
        if code_of(error) not in FULL:
            raise
        shutil.rmtree(staging, ignore_errors=True)
        raise full(folder, bytes_needed(learned, optimizer)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Checkpoint(folder, json.loads((folder / MANIFEST).read_text()))


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, with every file's size and hash verified.

    Raises:
        Problem: it is not whole.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest.pop(DIGEST, None) != _digest(manifest):
            raise ValueError(f"{MANIFEST} is not what was written")
        if not {WEIGHTS, STATE} <= set(manifest["files"]):
            raise ValueError(f"{MANIFEST} lacks weights or state")
        for name, facts in manifest["files"].items():
            file = folder / name
            if file.stat().st_size != facts["size"] or _hash(file) != facts["sha256"]:
                raise ValueError(f"{name} is not what was written")
        if manifest["format"] != FORMAT:
            raise ValueError(f"it has format {manifest['format']}, and this version reads {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(
            str(folder), f"is no whole checkpoint ({error})", "An older one is used if there is one"
        ) from error
    return Checkpoint(folder, manifest)


def newest(folder: Path, kind: str = "step") -> tuple[Checkpoint | None, list[Problem]]:
    """The newest whole checkpoint of a run (kind `step` or `best`), and what is wrong with newer ones."""
    broken: list[Problem] = []
    for path in reversed(_listed(folder, kind)):
        try:
            return read(path), broken
        except Problem as problem:
            broken.append(problem)
    return None, broken


def restore(
    checkpoint: Checkpoint, learned: Learned, optimizer: Optimizer | None
) -> tuple[dict[str, Any], Round | None]:
    """Put a checkpoint's weights (and optimizer, and random states) in place.

    Returns the loop's numbers, and the round of the step that was begun if there was one.

    Raises:
        Problem: it belongs to another model, method or optimizer.
    """
    try:
        _load_weights(checkpoint.path, learned)
        state = json.loads((checkpoint.path / STATE).read_text())
        if optimizer is not None:
            _load_optimizer(checkpoint.path, optimizer, state["optimizer"])
            _load_random(checkpoint.path)
        begun = restored(load_file(checkpoint.path / ROUND), state["round"]) if "round" in state else None
        return state["loop"], begun
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise Problem(str(checkpoint.path), f"holds what no checkpoint of this run holds ({error!r})") from error


def prune(saved: Path, keep: int) -> None:
    """Remove all but `keep` checkpoints of the kind of the one that was just saved, once that is found whole.

    Those of later steps go too: they are of a past that was gone back on, or broken.
    """
    paths = _listed(saved.parent, saved.name.partition("-")[0])
    if len(paths) > 1:
        read(saved)
    earlier = [path for path in paths if path < saved]
    later = [path for path in paths if path > saved]
    for path in earlier[: max(0, len(earlier) - keep + 1)] + later:
        shutil.rmtree(path)


def _listed(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of a kind by their steps; folders with other names are not ours."""
    return sorted(folder.glob(f"{kind}-{'[0-9]' * 8}"))


def bytes_needed(learned: Learned, optimizer: Optimizer | None) -> int:
    """About how many bytes a checkpoint takes; before the first step, as if the optimizer were AdamW."""
    state = _state_bytes(optimizer) or 2 * learned.bytes if optimizer is not None else 0
    return learned.bytes + state + (1 << 20)


def _state_bytes(optimizer: Optimizer) -> int:
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _check_space(folder: Path, learned: Learned, optimizer: Optimizer | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < bytes_needed(learned, optimizer):
        raise OSError(errno.ENOSPC, "not enough space")


def _write_parts(
    folder: Path, learned: Learned, optimizer: Optimizer | None, state: Mapping[str, Any], begun: Round | None
) -> None:
    save_file(_on_cpu(learned.weights), folder / WEIGHTS)
    if beside := learned.beside():
        save_file(_on_cpu(beside), folder / METHOD)
    numbers: dict[str, Any] = {}
    if optimizer is not None:
        tensors, numbers = _split_optimizer(optimizer)
        save_file(tensors, folder / OPTIMIZER)
        save_file(_random_states(), folder / RANDOM)
    whole: dict[str, Any] = {"loop": state, "optimizer": numbers}
    if begun is not None:
        tensors, whole["round"] = outline(begun)
        save_file(tensors, folder / ROUND)
    (folder / STATE).write_text(json.dumps(whole, indent=1))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_manifest(folder: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    files = {}
    for file in sorted(folder.iterdir()):
        sync_file(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": _hash(file)}
    manifest = {"format": FORMAT, "step": state["step"], "tokens": state["tokens"], "files": files, **facts}
    (folder / MANIFEST).write_text(json.dumps({**manifest, DIGEST: _digest(manifest)}, indent=1))
    sync_file(folder / MANIFEST)
    sync_folder(folder)


def _publish(staging: Path, folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    sync_folder(folder.parent)


def _split_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in whole["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, {"kind": type(optimizer).__name__, "state": numbers, "groups": whole["param_groups"]}


def _load_weights(folder: Path, learned: Learned) -> None:
    saved, own = load_file(folder / WEIGHTS), learned.weights
    if set(saved) != set(own) or any(saved[name].shape != own[name].shape for name in own):
        odd = sorted(set(saved) ^ set(own))[:3]
        raise Problem(str(folder), f"holds other weights than this run trains ({', '.join(odd) or 'other shapes'})")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved[name])
    if learned.method is not None and (folder / METHOD).is_file():
        learned.method.restore(learned.model, load_file(folder / METHOD))


def _load_optimizer(folder: Path, optimizer: Optimizer, numbers: Mapping[str, Any]) -> None:
    if numbers["kind"] != type(optimizer).__name__:
        raise Problem(str(folder), f"holds the state of {numbers['kind']}, and this run has {type(optimizer).__name__}")
    state: dict[int, dict[str, Any]] = {}
    values: dict[str, Any] = {**load_file(folder / OPTIMIZER), **numbers["state"]}
    for key, value in values.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [dict(group) for group in numbers["groups"]]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
        raise Problem(str(folder), "holds the state of another optimizer")
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        # Options are the run's; above all lr, which a checkpoint holds as its schedule had it in that step.
        group.update({name: own[name] for name in optimizer.defaults if name in own})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_states() -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    assert name == "MT19937"
    states["numpy"] = torch.from_numpy(np.asarray(keys).view(np.uint8).copy())
    states["numpy.rest"] = torch.tensor([position, has_gauss, cached], dtype=torch.float64)
    version, words, gauss = random.getstate()
    states["python"] = torch.tensor([version, *words], dtype=torch.int64)
    states["python.gauss"] = torch.tensor([] if gauss is None else [gauss], dtype=torch.float64)
    return states


def _load_random(folder: Path) -> None:
    states = load_file(folder / RANDOM)
    torch.set_rng_state(states["torch"])
    cuda = [states[name] for name in sorted(states) if name.startswith("cuda.")]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    position, has_gauss, cached = states["numpy.rest"].tolist()
    keys = states["numpy"].numpy().view(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    version, *words = states["python"].tolist()
    gauss = states["python.gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
