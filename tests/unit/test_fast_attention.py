"""Kernels over whole forests: what they are asked is the forest, as segment by segment computes it on any device.

No GPU is needed: flash attention's function is replaced by its documented meaning in plain products, FlexAttention runs
as it does on a CPU (forward), its mask and scores by plain products with gradients, and what would run on a GPU runs
on tensors that have shapes alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tunesmith.models.attention import NAME, Ask, by_segment, give_kernels, kernels_of
from tunesmith.models.device import product_type
from tunesmith.models.fast import _cascade, attention, release
from tunesmith.models.fast._cascade import Cascade
from tunesmith.models.fast._flex import Flex
from tunesmith.models.fast._paths import Paths
from tunesmith.models.fast._proven import Proven
from tunesmith.models.fast._tree import Tree, block_mask, sees
from tunesmith.models.fast._varlen import Varlen, library
from tunesmith.models.forest import Layout, Segment
from tunesmith.models.likelihood import Head
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import next_token_loss

SHAPES: dict[str, list[tuple[int, int | None]]] = {
    "a row": [(7, None)],
    "rows": [(5, None), (1, None), (9, None)],
    "pairs": [(6, None), (3, 0), (5, 0), (4, None), (2, 3)],
    "deep": [(4, None), (3, 0), (2, 1), (5, 0), (1, 3), (6, None), (2, 1)],
    "long": [(150, None), (90, 0), (140, 0), (131, None), (129, 3)],
    "a text without tokens": [(3, None), (0, 0), (4, 0)],
}
"""Trees as (tokens, parent) of each segment; those of `deep` do not stand in the order of a walk."""


def layout_of(shape: str, past: int = 0) -> Layout:
    """A layout of such segments, below `past` keys and values of zero layers."""
    segments, positions, start = [], [], 0
    for size, parent in SHAPES[shape]:
        first = past if parent is None else positions[segments[parent].stop - 1] + 1
        segments.append(Segment(start, start + size, parent))
        positions += range(first, first + size)
        start += size
    above = ((torch.randn(1, 2, past, 16), torch.randn(1, 2, past, 16)),) if past else ()
    return Layout(tuple(segments), torch.tensor(positions), above)


def states(layout: Layout, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Query of four heads, key and value of two, 16 wide."""
    torch.manual_seed(0)
    length = len(layout.positions)
    query, key, value = (torch.randn(1, heads, length, 16, dtype=kind) for heads in (4, 2, 2))
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def ask_of(layout: Layout, window: int | None = None, softcap: float | None = None) -> Ask:
    return Ask(0.3, window, softcap, before=layout.past[0] if layout.past else None)


def plain_flash(query: Tensor, key: Tensor, value: Tensor, paths: Paths, ask: Ask) -> Tensor:
    """The documented meaning of flash attention's function: causal from the ends of both, `window` keys back."""
    assert paths.queries.dtype == paths.keys.dtype == torch.int32
    parts = []
    for number in range(len(paths.queries) - 1):
        own = slice(int(paths.queries[number]), int(paths.queries[number + 1]))
        path = slice(int(paths.keys[number]), int(paths.keys[number + 1]))
        mine, theirs = own.stop - own.start, path.stop - path.start
        assert mine <= paths.longest_query
        assert theirs <= paths.longest_path
        behind = torch.arange(mine)[:, None] + theirs - mine - torch.arange(theirs)[None]
        seen = (behind >= 0) & (behind < (ask.window or theirs))
        parts.append(
            plain(query[own].transpose(0, 1), key[path].transpose(0, 1), value[path].transpose(0, 1), seen, ask)
        )
    return torch.cat(parts, dim=1).transpose(0, 1)


def plain(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, ask: Ask) -> Tensor:
    """Attention in textbook form: query [H, N, D], key and value [G, K, D], seen [N, K]."""
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores = query @ key.transpose(1, 2) * ask.scale
    if ask.softcap is not None:
        scores = ask.softcap * torch.tanh(scores / ask.softcap)
    return scores.masked_fill(~seen, float("-inf")).softmax(dim=-1) @ value


def seen_by_walking(layout: Layout, window: int | None) -> Tensor:
    """[N, n + N] which keys each query sees, found by going up from its segment, token by token."""
    past = layout.past_length
    out = torch.zeros(len(layout.positions), past + len(layout.positions), dtype=torch.bool)
    for segment in layout.segments:
        line: list[int] = []
        at: Segment | None = segment
        while at is not None:
            line = [*range(at.start + past, at.stop + past), *line]
            at = None if at.parent is None else layout.segments[at.parent]
        line = [*range(past), *line]
        for token in range(segment.start, segment.stop):
            upto = line[: line.index(token + past) + 1]
            out[token, upto if window is None else upto[-window:]] = True
    return out


def assert_same(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> None:
    """Results and gradients agree."""
    found, expected = ours(), theirs()
    close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)  # softmax of capped scores is float32
    close(found, expected)
    weight = torch.randn_like(expected)
    mine, right = (torch.autograd.grad((out * weight).sum(), leaves) for out in (found, expected))
    for one, other in zip(mine, right, strict=True):
        close(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("past", [0, 3])
class TestCascades:
    def test_a_cascade_is_the_forest(self, shape: str, past: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_cascade, "MUCH", -1)
        layout = layout_of(shape, past)
        leaves, ask = states(layout), ask_of(layout)
        before = ()
        if ask.before is not None:
            before = (ask.before[0].double().requires_grad_(), ask.before[1].double().requires_grad_())
            ask = replace(ask, before=before)
        kernel = Cascade()
        assert kernel.takes(leaves[0], leaves[2], ask)
        all_leaves = (*leaves, *before)
        assert_same(lambda: kernel(*leaves, layout, ask), lambda: by_segment(*leaves, layout, ask), all_leaves)

    def test_it_is_used_where_many_keys_would_be_laid_out(
        self, shape: str, past: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layout = layout_of(shape, past)
        lines = zip(layout.segments, layout.ancestors, strict=True)
        some = [above for segment, above in lines if segment.stop > segment.start]
        laid_out = sum(past + sum(part.stop - part.start for part in above) for above in some)
        many = laid_out > len(layout.positions) / 2
        calls: list[object] = []
        monkeypatch.setattr(_cascade, "by_segment", lambda *args: calls.append(args) or by_segment(*args))
        Cascade()(*states(layout), layout, ask_of(layout))
        assert len(calls) == (not many)


def test_a_cascade_leaves_what_it_cannot_compute() -> None:
    layout = layout_of("pairs")
    query, _, value = states(layout)
    ask = ask_of(layout)
    kernel = Cascade()
    assert kernel.takes(query, value, ask)
    assert kernel.takes(query.float(), value.float(), ask)
    for other in (replace(ask, window=4), replace(ask, softcap=1.0), replace(ask, dropout=0.1)):
        assert not kernel.takes(query, value, other)
    assert not kernel.takes(query.bfloat16(), value.bfloat16(), ask)
    assert not kernel.takes(query, value[..., :8], ask)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernel.takes(query.float(), value.float(), ask)


def test_a_kernel_is_proven_within_layers_that_are_recomputed() -> None:
    layout = layout_of("pairs")
    query, key, value = states(layout, torch.float32)
    proven = Proven(Cascade())

    def layer(query: Tensor) -> Tensor:
        assert proven.takes(query, value, ask_of(layout))
        return proven(query * 2, key, value, layout, ask_of(layout))

    out: Any = checkpoint(layer, query, use_reentrant=False)
    out.sum().backward()
    assert query.grad is not None
    assert list(proven.reasons.values()) == [""]


def test_a_cascade_keeps_no_keys_of_a_prompt_for_each_answer() -> None:
    """What is saved for the backward pass grows with the tokens, not with the paths."""

    def saved(answers: int) -> int:
        below = [Segment(64 + at, 65 + at, 0) for at in range(answers)]
        layout = Layout((Segment(0, 64, None), *below), torch.tensor([*range(64), *[64] * answers]))
        numbers: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            numbers.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            Cascade()(*states(layout, torch.float32), layout, ask_of(layout))
        return sum(numbers)

    assert saved(8) < 1.2 * saved(2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("past", [0, 3])
class TestForests:
    def test_paths_for_flash_attention_are_the_forest(self, shape: str, window: int | None, past: int) -> None:
        layout = layout_of(shape, past)
        leaves, ask = states(layout), ask_of(layout, window)
        kernel = Varlen(plain_flash, caps=False)
        assert_same(lambda: kernel(*leaves, layout, ask), lambda: by_segment(*leaves, layout, ask), leaves)

    def test_the_test_of_two_tokens_is_the_forest(self, shape: str, window: int | None, past: int) -> None:
        layout = layout_of(shape, past)
        query, key = torch.arange(len(layout.positions)), torch.arange(past + len(layout.positions))
        found = sees(Tree.of(layout), window)(query[:1] * 0, query[:1] * 0, query[:, None], key[None])
        assert torch.equal(found, seen_by_walking(layout, window))

    def test_blocks_are_those_that_torch_finds(self, shape: str, window: int | None, past: int) -> None:
        layout = layout_of(shape, past)
        length = len(layout.positions)
        ours = block_mask(layout, window)
        theirs = create_block_mask(sees(Tree.of(layout), window), None, None, length, past + length, device="cpu")
        assert ours.shape == theirs.shape
        for name in ("kv", "full_kv", "q", "full_q"):
            counts = [getattr(mask, f"{name}_num_blocks") for mask in (ours, theirs)]
            assert torch.equal(*counts)
            indices = [getattr(mask, f"{name}_indices") for mask in (ours, theirs)]
            used = torch.arange(indices[0].shape[-1]) < counts[0][..., None]
            assert torch.equal(indices[0][used], indices[1][used])

    @pytest.mark.parametrize("softcap", [None, 0.7])
    def test_flex_attention_is_the_forest(
        self, shape: str, window: int | None, past: int, softcap: float | None
    ) -> None:
        layout = layout_of(shape, past)
        ask = ask_of(layout, window, softcap)
        query, key, value = (part.detach().float() for part in states(layout))
        found = Flex(unfused)(query, key, value, layout, ask)
        torch.testing.assert_close(found, by_segment(query, key, value, layout, ask), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("softcap", [None, 0.7])
    def test_what_flex_attention_is_given_has_the_right_gradients(
        self, shape: str, window: int | None, past: int, softcap: float | None
    ) -> None:
        layout = layout_of(shape, past)
        leaves, ask = states(layout), ask_of(layout, window, softcap)
        kernel = Flex(by_its_parts)
        assert_same(lambda: kernel(*leaves, layout, ask), lambda: by_segment(*leaves, layout, ask), leaves)


@pytest.fixture(autouse=True)
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention in plain products, without Dynamo before them."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def unfused(*states: Tensor, **options: Any) -> Tensor:
    out = flex_attention(*states, **options)
    assert isinstance(out, Tensor)
    return out


def by_its_parts(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """The documented meaning of FlexAttention: scores changed one by one, those that the mask's test hides left out."""
    groups = query.shape[1] // key.shape[1]
    assert given["enable_gqa"] == (groups > 1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * given["scale"]
    places = [torch.arange(size) for size in scores.shape]
    grid = torch.meshgrid(*places, indexing="ij")
    if given["score_mod"] is not None:
        scores = given["score_mod"](scores, *grid)
    seen = given["block_mask"].mask_mod(*grid)
    return scores.masked_fill(~seen, float("-inf")).softmax(dim=-1) @ value


def test_blocks_are_found_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = block_mask(layout_of("long"), 100)
    monkeypatch.setattr("tunesmith.models.fast._tree.PAIRS", 1 << 10)
    parts = block_mask(layout_of("long"), 100)
    assert torch.equal(whole.kv_num_blocks, parts.kv_num_blocks)
    assert torch.equal(whole.full_kv_indices, parts.full_kv_indices)


def test_what_is_found_out_about_a_tree_is_found_once() -> None:
    layout = layout_of("pairs")
    assert block_mask(layout, None) is block_mask(layout, None)
    assert block_mask(layout, 4) is not block_mask(layout, None)


def test_keys_of_rows_that_share_nothing_are_not_laid_out_anew() -> None:
    layout = layout_of("rows")
    Varlen(plain_flash, caps=False)(*states(layout), layout, ask_of(layout))
    assert layout.kept[Paths].order is None


def query(kind: torch.dtype = torch.bfloat16, width: int = 64, device: str = "cuda") -> Tensor:
    with FakeTensorMode():
        return torch.empty(1, 4, 8, width, dtype=kind, device=device)


class TestWhatIsTaken:
    @pytest.mark.parametrize(
        ("states", "ask", "varlen", "flex"),
        [
            (query(), Ask(1.0), True, True),
            (query(torch.float16), Ask(1.0, window=4), True, True),
            (query(torch.float32), Ask(1.0), False, True),
            (query(torch.float64), Ask(1.0), False, False),
            (query(), Ask(1.0, softcap=5.0), False, True),
            (query(), Ask(1.0, dropout=0.1), False, False),
            (query(width=20), Ask(1.0), False, True),
            (query(width=8), Ask(1.0), True, False),
            (query(width=320), Ask(1.0), False, True),
            (query(device="cpu"), Ask(1.0), False, False),
        ],
    )
    def test_by_type_width_device_and_what_is_asked(self, states: Tensor, ask: Ask, varlen: bool, flex: bool) -> None:
        assert Varlen(plain_flash, caps=False).takes(states, states, ask) == varlen
        assert Flex().takes(states, states, ask) == flex

    def test_a_library_that_caps_takes_caps(self) -> None:
        assert Varlen(plain_flash, caps=True).takes(query(), query(), Ask(1.0, softcap=5.0))

    def test_values_narrower_than_keys_are_not_for_flash(self) -> None:
        assert not Varlen(plain_flash, caps=False).takes(query(width=64), query(width=32), Ask(1.0))

    def test_autocast_decides_the_type_of_products(self) -> None:
        states = torch.zeros(1, 1, 1, 8)
        assert product_type(states) == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert product_type(states) == torch.bfloat16


class Called(TorchDispatchMode):
    """Which operators are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", ["rows", "pairs"])
def test_torch_takes_the_call_of_its_kernel(shape: str) -> None:
    """On tensors that have shapes alone: it is called once forward and once backward."""
    kernel, layout = library(), layout_of(shape)
    if isinstance(kernel, str):
        pytest.skip(kernel)
    meta = torch.device("meta")
    layout, kernel = (
        replace(layout, positions=layout.positions.to(meta)),
        Varlen(kernel.flash, caps=False, device="meta"),
    )
    leaves = [part.detach().to(meta, torch.bfloat16).requires_grad_() for part in states(layout_of(shape))]
    assert kernel.takes(leaves[0], leaves[2], Ask(0.3, window=4))
    with Called() as called:
        out = kernel(leaves[0], leaves[1], leaves[2], layout, Ask(0.3, window=4))
        grads = torch.autograd.grad(out.float().sum(), leaves)
    assert out.shape == (1, len(layout.positions), 4, 16)
    assert out.dtype == torch.bfloat16
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
    assert called.names.count("torch_attn._varlen_attn.default") == 1
    assert called.names.count("torch_attn._varlen_attn_backward.default") == 1


class Asked(Varlen):
    """A kernel on a CPU that is right unless `wrong` is done to what it computes."""

    def __init__(self, wrong: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(plain_flash, caps=True, device="cpu")
        self.wrong = wrong or (lambda out: out)
        self.calls = 0

    def takes(self, query: Tensor, value: Tensor, ask: Ask) -> bool:
        return ask.dropout == 0

    def __call__(self, *states: Any) -> Tensor:
        self.calls += 1
        return self.wrong(super().__call__(*states))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_layer_of_every_family_uses_its_kernel(family: str) -> None:
    model = tiny.model(family)
    model.set_attn_implementation(NAME)
    batch, kernel = plant(tiny.forest_rows()), Asked()
    policy = Policy(model, forest=True)
    found = []
    for kernels in ((), (kernel,)):
        give_kernels(model, kernels)
        assert kernels_of(model) == kernels
        model.zero_grad()
        loss = next_token_loss(policy, batch)
        loss.backward()
        found.append((loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}))
    assert kernel.calls == model.config.num_hidden_layers
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    for name, expected in found[0][1].items():
        if expected is not None:
            size = float(expected.abs().max())
            torch.testing.assert_close(found[1][1][name], expected, rtol=1e-3, atol=1e-3 * max(size, 1e-3))


def failing(out: Tensor) -> Tensor:
    raise RuntimeError("no kernel image for this device\nand more")


class TestProof:
    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("past", [0, 3])
    @pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 2.0)])
    def test_what_is_right_is_used(
        self, kind: torch.dtype, past: int, window: int | None, softcap: float | None
    ) -> None:
        layout = layout_of("pairs", past)
        proven = Proven(Asked())
        query, key, value = (part.detach() for part in states(layout, kind))
        assert proven.takes(query, value, ask_of(layout, window, softcap)), proven.reasons
        assert proven(query, key, value, layout, ask_of(layout, window, softcap)).shape == (1, 20, 4, 16)

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            (lambda out: out.roll(1, dims=1), "differs by"),
            (lambda out: out * torch.where(torch.arange(out.shape[1]) == 390, 1.3, 1.0)[:, None, None], "differs by"),
            (lambda out: out + out.detach(), "differs by"),
            (lambda out: 2 * out - out.detach(), "differs by"),
            (lambda out: out * float("nan"), "differs by nan"),
            (failing, "fails (RuntimeError: no kernel image for this device"),
        ],
    )
    def test_what_is_wrong_is_not(self, wrong: Callable[[Tensor], Tensor], reason: str) -> None:
        """A token's values, a value in place of another, or a gradient alone."""
        layout = layout_of("rows")
        query, _, value = states(layout, torch.bfloat16)
        proven = Proven(Asked(wrong))
        with pytest.warns(UserWarning, match="attention: Asked .*, so slower code takes its place"):
            assert not proven.takes(query, value, ask_of(layout))
        (found,) = proven.reasons.values()
        assert reason in found
        assert "\n" not in found

    def test_each_thing_asked_is_tried_once(self) -> None:
        layout = layout_of("rows")
        query, _, value = states(layout, torch.float32)
        kernel = Asked()
        proven = Proven(kernel)
        random = torch.get_rng_state()
        for window in (None, 4, 5, None):
            assert proven.takes(query, value, ask_of(layout, window))
        assert kernel.calls == 2
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert proven.takes(query, value, ask_of(layout))
        assert [kind for kind, *_ in proven.reasons] == [torch.float32, torch.float32, torch.bfloat16]
        assert torch.equal(random, torch.get_rng_state())

    def test_a_model_without_a_device_gets_no_kernels(self) -> None:
        model = tiny.model("llama").to("meta")
        model.set_attn_implementation(NAME)
        assert attention.pull(model) == 0
        assert kernels_of(model) == ()

    def test_each_device_has_its_kernels(self) -> None:
        names = {
            kind: [type(each.kernel).__name__ for each in attention.kernels(kind)] for kind in ("cuda", "cpu", "mps")
        }
        assert names["cuda"][-1] == "Flex"
        assert (names["cpu"], names["mps"]) == (["Cascade"], [])

    def test_a_model_on_the_device_gets_them_on_each_layer(self) -> None:
        model = tiny.model("llama")
        assert attention.pull(model) == 0  # it computes padded rows
        model.set_attn_implementation(NAME)
        assert attention.pull(model) == 3
        assert all(isinstance(kernel, Proven) for kernel in kernels_of(model))
        release(model)
        assert kernels_of(model) == ()


def test_what_no_kernel_takes_is_computed_by_segment() -> None:
    model = tiny.model("llama", attention_dropout=0.5).train()
    model.set_attn_implementation(NAME)
    kernel = Asked()
    give_kernels(model, (kernel,))
    next_token_loss(Policy(model, forest=True), plant(tiny.forest_rows())).backward()
    assert kernel.calls == 0


def test_more_logits_exist_at_once_on_a_gpu() -> None:
    layer = torch.nn.Linear(8, 152_000, device="meta")
    chunks = []
    for device in ("cpu", "cuda"):
        with FakeTensorMode():
            weight = torch.empty(152_000, 8, device=device)
        vars(layer)["_parameters"]["weight"] = weight
        chunks.append(Head(layer).chunk)
    assert chunks == [220, 883]
