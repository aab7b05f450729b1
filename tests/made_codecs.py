"""A small byte-level tokenizer made in code, and chat templates in the styles of well-known families."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.core.records import Message
from tunesmith.data.codec_parts import CodecParts
from tunesmith.data.tokenizer import Codec

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>")
SPECIALS += ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "i n", "in g")

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%d %b %Y') ~ '\\n\\n' }}
{%- if tools %}{% for tool in tools %}{{- tool | tojson(indent=2) ~ '\\n' }}{% endfor %}{% endif %}
{{- ns.system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ '}<|eom_id|>' }}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- '# Tools' }}{% for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if content or not loop.first }}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

INST = """\
{{- bos_token }}{% for message in messages %}{% if message.role == 'user' %}
{{- '[INST] ' + message.content + ' [/INST]' }}{% elif message.role == 'assistant' %}
{{- ' ' + message.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""

LAST_TOOLS = """\
{{- bos_token }}{% for message in messages %}{% if message.role == 'user' %}
{%- if tools and loop.index0 >= messages | length - 2 %}{{- '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{{- '[INST]' + message.content + '[/INST]' }}{% elif message.role == 'assistant' %}
{{- message.content + eos_token }}{% endif %}{% endfor %}"""
"""Rewrites earlier turns: the tools stand before the last question only."""

GENERATION = """\
{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}
{%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

NO_END = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}{% endfor %}"

TEMPLATES = {
    "chatml": (CHATML, "<|endoftext|>", "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "qwen3": (QWEN3, "<|endoftext|>", "<|im_end|>"),
    "gemma": (GEMMA, "<s>", "</s>"),
    "inst": (INST, "<s>", "</s>"),
    "last_tools": (LAST_TOOLS, "<s>", "</s>"),
    "generation": (GENERATION, "<|endoftext|>", "<|im_end|>"),
    "no_end": (NO_END, "<|endoftext|>", "<|endoftext|>"),
}
"""Template, beginning of text, end of text, by style."""

TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "note": "<b> & 'é'"}}},
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}


def byte_characters() -> list[str]:
    """The printable stand-ins of GPT-2's byte-level alphabet, by byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in kept]
    table = {byte: chr(byte) for byte in kept} | {byte: chr(256 + place) for place, byte in enumerate(other)}
    return [table[byte] for byte in range(256)]


def tokenizer_json() -> str:
    """A byte-level BPE of 256 bytes, eight merges and the special tokens: no training, so its ids are fixed."""
    tokens = [*SPECIALS, *MARKUP, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": n, "content": t, "special": t in SPECIALS, **flags} for n, t in enumerate(SPECIALS + MARKUP)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {token: n for n, token in enumerate(tokens)}, "merges": list(MERGES)}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": level,
            "decoder": level,
            "model": model,
        }
    )


def named(style: str) -> dict[str, str]:
    _, bos, eos = TEMPLATES[style]
    return {"bos_token": bos, "eos_token": eos, "pad_token": "<|endoftext|>"}


def codec(style: str = "chatml") -> Codec:
    """The small tokenizer with a template of this style."""
    return Codec(CodecParts(tokenizer_json(), TEMPLATES[style][0], specials=tuple(named(style).items())))


def oracle(style: str = "chatml") -> Any:
    """The same tokenizer and template in transformers."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()), chat_template=TEMPLATES[style][0], **named(style)
    )


FRAMES = {"t5": ("", "</s>"), "bart": ("<s>", "</s>")}
"""What tokenizers of encoder-decoders put around a text, by style; they have no chat template."""


def sides_oracle(style: str = "t5") -> Any:
    """The small tokenizer as an encoder-decoder has it, in transformers."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(tokenizer_json())
    bos, eos = FRAMES[style]
    specials = [(text, tokenizer.token_to_id(text)) for text in (bos, eos) if text]
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A {eos}".strip(), special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<|endoftext|>"
    )


def encoder_oracle(style: str = "wordpiece") -> Any:
    """A small tokenizer as an encoder has it, in transformers: BERT's pieces of words, or RoBERTa's bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if style == "bytes":
        made = sides_oracle("bart")
        made.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
        return made
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?!.,"
    words = [*specials, *letters, *(f"##{letter}" for letter in letters), "the", "is", "##ing"]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(text, tokenizer.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    named = {f"{text[1:-1].lower()}_token": text for text in specials}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def sides_codec(style: str = "t5") -> Codec:
    """The codec of such a tokenizer."""
    return Codec.of(sides_oracle(style), encoder_decoder=True)


def chat(*contents: str, **last: Any) -> tuple[Message, ...]:
    """User and assistant in turn; `last` goes to the last message."""
    out = [Message("assistant" if n % 2 else "user", content) for n, content in enumerate(contents)]
    if last:
        out[-1] = Message(out[-1].role, out[-1].content, **last)
    return tuple(out)
