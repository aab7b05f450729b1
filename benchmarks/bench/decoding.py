"""Sides of the benchmark of generation: the same prompts of random tokens, answered greedily, in batches.

cost of a token   (answers of n + 1 tokens) less (answers of 1 token), over n tokens a row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.work import Clock

Answer = Callable[[int, int, int], list[list[int]]]
"""From rows, tokens of each prompt and tokens of each answer to the answers."""


def prompts(rows: int, length: int, vocab: int) -> list[list[int]]:
    """Prompts of tokens that look random, the same at each call."""
    return [
        [3 + (7919 * (row + 1) * (place + 3) + place**2) % (vocab - 3) for place in range(length)]
        for row in range(rows)
    ]


def figures(settings: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Tokens a CPU second for each batch size, and what the first batch answered."""
    found: dict[str, Any] = {}
    length = settings["length"]
    for rows, new in settings["batches"]:
        answer(rows, length, 2)
        one, more = spent(answer, rows, length, 1), spent(answer, rows, length, new + 1)
        found[f"speed_{rows}"] = rows * new / (more - one)
        found[f"prompt_{rows}"] = rows * length / one
    return {**found, "answers": answer(1, length, settings["compared"])[0]}


def spent(work: Callable[..., object], *given: object) -> float:
    """CPU seconds of a call."""
    with Clock() as clock:
        work(*given)
    return clock.cpu


def hugging(settings: dict[str, Any]) -> dict[str, Any]:
    """transformers' `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(f"{settings['place']}/model", dtype=settings["dtype"]).eval()
    vocab = model.config.vocab_size

    def answer(rows: int, length: int, new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts(rows, length, vocab))
        config = GenerationConfig(
            max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=1
        )
        with torch.no_grad():
            out = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
        return out[:, length:].tolist()

    return figures(settings, answer)


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    """The engine `local`, and what several answers to one prompt cost beside one."""
    from tunesmith.core.run import ModelSpec
    from tunesmith.generate.batches import Job
    from tunesmith.generate.engines.local import Local
    from tunesmith.generate.sampling import Sampling

    spec = ModelSpec(path=f"{settings['place']}/model", device="cpu", dtype=settings["dtype"])
    answers = Local(weights=settings["weights"], batch_tokens=1 << 20).open(spec)
    vocab = answers.base.config.vocab_size

    def drawn(asked: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        jobs = [Job(index, tuple(tokens), new) for index, tokens in enumerate(asked)]
        return [list(answer.tokens) for _, answer in answers.drawn(jobs, Sampling(max_tokens=new))]

    found = figures(settings, lambda rows, length, new: drawn(prompts(rows, length, vocab), new))
    prompt = prompts(1, settings["long"], vocab)
    drawn(prompt * 2, 1)  # whether prompts are read once is found here
    once = spent(drawn, prompt * settings["several"], 1) / spent(drawn, prompt, 1)
    return {**found, "once": once}
