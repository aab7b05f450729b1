"""Answers through vLLM's offline class `LLM`, in this process, on a GPU.

    asks ─▶ tokens (tunesmith's own template) ─▶ LLM.generate ─▶ tokens ─▶ answers
    a run's LoRA adapter ─▶ LoRARequest              weights that learn ─▶ a new folder ─▶ loaded from there

vLLM pins torch and transformers to versions of its own, so it needs an environment of its own, with tunesmith in it.
This file was written against vLLM's documentation and source (0.32 and later) and has been run only against a stand-in
of it, never against the real one: watch the first answers. How rows are put into batches moves vLLM's logits by
rounding, so a repeated call gives the same answers only where its batch-invariant mode is on (VLLM_BATCH_INVARIANT=1).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar

from peft import PeftModel
from pydantic import Field
from torch import nn

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.asks import answer_of, job_of
from tunesmith.generate.batches import Job
from tunesmith.generate.draws import seed_of
from tunesmith.generate.engines import Answer, Answers, Around, Ask, Engine
from tunesmith.generate.loras import FROM_THE_BASE, sum_refused
from tunesmith.generate.opened import DOES
from tunesmith.generate.sampling import Sampling
from tunesmith.models.load import load_codec, load_config
from tunesmith.models.source import Found, find, head_of, is_encoder_decoder, read_json

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks of adapters that vLLM can be made ready for."""


class Vllm(Engine):
    """vLLM in this process; for many answers at once on a GPU."""

    follows: ClassVar[bool] = True

    memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that it takes; beside a model that is trained less, such as 0.3."""
    gpus: Annotated[int, Field(gt=0)] = 1
    """GPUs that the model is split over."""

    def open(self, model: ModelSpec) -> VllmAnswers:
        _check(model)
        found = find(model.path, model.revision)
        if (kind := head_of(found).kind) != "lm":
            raise Problem(model.path, f"this model {DOES[kind]}", "Name one that writes")
        rank = 0 if found.adapter is None else _rank_of(found.adapter)
        codec = load_codec(found, model.chat_template)
        answers = VllmAnswers(self._start(found, model.dtype, rank), codec, _context(found))
        if found.adapter is not None:
            answers.wear(found.adapter)
        return answers

    def follow(self, model: nn.Module, codec: Codec, around: Around = nullcontext) -> VllmAnswers:
        """Answers of a model that learns; vLLM computes by itself, in the number type of the weights."""
        return self.bind(model, codec)

    def bind(self, model: nn.Module, codec: Codec) -> VllmAnswers:
        """Answers of a model that is in memory and learns: before each call its weights are saved and loaded anew.

        model: a transformers model, or PEFT's wrapper of one with a LoRA adapter.

        Raises:
            Problem: its adapter is none that vLLM knows, or its base is quantised.
        """
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if getattr(base, "is_quantized", False):
            raise _not_taken("its base is held in few bits, and vLLM would compute with the base as it was before")
        rank = 0
        if isinstance(model, PeftModel):
            if reason := sum_refused(model):
                raise _not_taken(reason)
            rank = _rank(model.active_peft_config.to_dict())
        elif not hasattr(base, "save_pretrained"):
            raise _not_taken("it has modules of its own, which no folder of transformers or PEFT holds")
        found = find(base.name_or_path)
        dtype = str(base.dtype).removeprefix("torch.")
        return VllmAnswers(self._start(Found(found.name, found.base), dtype, rank), codec, _context(found), model)

    def _start(self, found: Found, dtype: str, rank: int) -> Any:
        """vLLM's engine over the base; rank: of the adapters that it shall wear, 0 for none.

        Raises:
            Problem: vLLM is not installed, or cannot read models of this kind.
        """
        if is_encoder_decoder(found):
            raise _not_taken("it has an encoder and a decoder")
        loras = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1} if rank else {}
        return _library().LLM(
            model=str(found.base),
            tokenizer=str(found.tokenizer),
            dtype=dtype,
            tensor_parallel_size=self.gpus,
            gpu_memory_utilization=self.memory,
            trust_remote_code=False,
            load_format="safetensors",
            generation_config="vllm",
            **loras,
        )


class VllmAnswers(Answers):
    """vLLM at work. learning: the model whose weights it follows, None for weights that stay."""

    def __init__(self, llm: Any, codec: Codec, context: int | None, learning: nn.Module | None = None) -> None:
        self.llm = llm
        self.codec = codec
        self.context = context
        self.learning = learning
        self._worn: Any = None
        self._numbers = itertools.count(1)

    def wear(self, folder: Path) -> None:
        """Answer with a LoRA adapter from now on; its number is new, so nothing kept of another one is used."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        number = next(self._numbers)
        self._worn = LoRARequest(f"adapter-{number}", number, str(folder))

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        return (answer for (answer,) in self.answers(asks, sampling, 1))

    def answers(self, asks: Sequence[Ask], sampling: Sampling, n: int) -> Iterator[tuple[Answer, ...]]:
        if n < 1:
            raise ValueError(f"n is {n}, and an ask has one answer at least")
        jobs = [job_of(index, ask, sampling, self.codec, self.context) for index, ask in enumerate(asks)]
        return self._drawn(jobs, sampling, n)

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        """The answer as one piece: the offline class gives none before its end."""
        (answer,) = self.answer([ask], sampling)
        yield answer.text

    def _drawn(self, jobs: Sequence[Job], sampling: Sampling, n: int) -> Iterator[tuple[Answer, ...]]:
        if not jobs:
            return
        with tempfile.TemporaryDirectory(prefix="tunesmith-vllm-") as folder:
            self._follow(Path(folder))
            prompts = [{"prompt_token_ids": list(job.tokens)} for job in jobs]
            asked = [self._params(job, sampling, n) for job in jobs]
            found = self.llm.generate(prompts, asked, use_tqdm=False, lora_request=self._worn)
        for job, request in zip(jobs, found, strict=True):
            drawn = [answer_of(job, list(one.token_ids), sampling, self.codec) for one in request.outputs]
            yield tuple(drawn * n if len(drawn) < n else drawn)

    def _follow(self, folder: Path) -> None:
        """Take over the weights of the model that learns, through safetensors in a folder."""
        if self.learning is None:
            return
        if isinstance(self.learning, PeftModel):
            self.learning.save_pretrained(str(folder), save_embedding_layers=False)
            self.wear(folder)
        else:
            self.learning.save_pretrained(folder)  # type: ignore[operator]
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self.llm.reset_prefix_cache()

    def _params(self, job: Job, sampling: Sampling, n: int) -> Any:
        """What vLLM draws one prompt's answers by; it gives answer k the seed of the first plus k.

        Without a temperature it draws one answer, since all are equal.
        """
        return _library().SamplingParams(
            n=n if sampling.temperature else 1,
            max_tokens=job.room,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            repetition_penalty=sampling.repetition_penalty,
            stop=list(sampling.stop),
            stop_token_ids=sorted(self.codec.end_tokens),
            seed=seed_of(sampling.seed, job.index * n),
        )


def _library() -> Any:
    """Raises: Problem: vLLM is not installed."""
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        what = f"is not installed here, or does not fit what is ({error})"
        hint = "It pins versions of torch: install it with tunesmith in an environment of its own"
        raise Problem("package vllm", what, hint) from error
    return vllm


def _check(model: ModelSpec) -> None:
    """Raises: Problem: an option of the model that vLLM cannot honour."""
    if model.device not in ("auto", "cuda"):
        raise Problem("model.device", f"is {model.device}, and vLLM is used on GPUs here", "Use the engine local")
    if model.quantize not in ("auto", "none"):
        what = f"is {model.quantize}, which vLLM holds in other ways than training does"
        raise Problem("model.quantize", what, "Leave it out, or use the engine local")


def _context(found: Found) -> int | None:
    return getattr(load_config(found).get_text_config(), "max_position_embeddings", None)


def _rank_of(adapter: Path) -> int:
    """The rank that vLLM must be made ready for.

    Raises:
        Problem: the adapter is none that vLLM computes as it was trained.
    """
    config = read_json(adapter / "adapter_config.json")
    kind, start = str(config.get("peft_type")), str(config.get("init_lora_weights")).lower()
    reasons = {
        f"it is {kind}, and vLLM knows LoRA": kind != "LORA",
        "it is DoRA": config.get("use_dora"),
        "it has trained biases": config.get("bias", "none") != "none",
        "it replaces whole layers": config.get("modules_to_save"),
        "it has trained embeddings of single tokens": config.get("trainable_token_indices"),
        "it repeats layers of the base": config.get("layer_replication"),
        "its start is taken out of the base's weights": start.startswith(FROM_THE_BASE),
    }
    if reason := next((reason for reason, found in reasons.items() if found), None):
        raise _not_taken(reason)
    return _rank(config)


def _rank(config: dict[str, Any]) -> int:
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise _not_taken("its rank or alpha differs by layer")
    rank = int(config["r"])
    if rank > RANKS[-1]:
        raise _not_taken(f"its rank is {rank}, and vLLM goes up to {RANKS[-1]}")
    return next(size for size in RANKS if size >= rank)


def _not_taken(reason: str) -> Problem:
    return Problem("engine vllm", f"cannot answer with this model: {reason}", "Fold it first, or use the engine local")
