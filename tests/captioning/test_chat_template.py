"""Chat templates of LLaVA-NeXT's checkpoints are accepted, unbounded ones refused."""

from __future__ import annotations

import pytest

pytest.importorskip("jinja2")

from captioning.engines.llava.chat_template import check_chat_template
from lattec_jax.runtime.errors import EngineError
from tests import tiny_llava

# The start of llava-hf/llava-v1.6-vicuna-7b-hf's, with transformers' own tags.
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}{# Images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [tiny_llava.TEMPLATE, VICUNA, SYSTEM, {"default": VICUNA}])
def test_templates_of_known_checkpoints(template):
    check_chat_template(template, "MODEL")


def loop(body: str) -> str:
    return "{% for a in messages %}" + body + "{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (loop(loop(loop("x"))), "more than 2 nested loops"),
        ("{% for a in range(100000) %}{% endfor %}", "a call of range"),
        ("{{ 'x' * 10000000000 }}", "Mul in line 1"),
        ("{{ 10 ** 10000000000 }}", "Pow in line 1"),
        ("{{ '%1000000000d' % 1 }}", "Mod in line 1"),
        ("{{ 'x'.ljust(10000000000) }}", "a call of ljust"),
        ("{{ 'x' | center(10000000000) }}", "the filter center"),
        ("{% set s = 'x' %}{% set s = s + s %}", "a computed variable"),
        ("{% set s %}{{ s }}{{ s }}{% endset %}", "AssignBlock in line 1"),
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "Macro in line 1|call of m"),
        ("{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}", "nested loops"),
        ("{{ " + "(" * 4000, "MODEL"),
        ("{{ 'x'", "MODEL"),
        ("x" * 10_001, "more than 10,000 characters"),
        ({"default": VICUNA, "b": "{{ 2 ** 9 }}"}, "Pow in line 1"),
        ([VICUNA], "found list"),
    ],
)
def test_what_may_not_end_is_refused(template, message):
    with pytest.raises(EngineError, match=message) as caught:
        check_chat_template(template, "MODEL")
    assert "choose a checkpoint such as" in str(caught.value)
