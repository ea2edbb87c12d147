"""Reference renderings of chat templates by Jinja2, set up as `transformers` does.

    pip install jinja2
    python tests/golden/chat_styles.py

Writes chat-styles.json: templates of several styles, conversations, and what Jinja2 makes of them (or its refusal).
"""

import json
import os
from datetime import datetime

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATES = {
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- The system message comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "thinking": """{%- macro turn(role, text) %}
<{{ role | upper }}>{{ text }}</{{ role }}>
{%- endmacro %}
{%- set ns = namespace(last=-1, seen=[]) %}
{%- for message in messages[::-1] %}
    {%- if ns.last == -1 and message.role == "user" %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- set ns.seen = ns.seen + [message.role] %}
    {{- turn(message.role, content.replace('a', 'A') if loop.last else content) }}
{%- endfor %}
{{ ns.seen | join(', ') }} {{ ns.last }} {{ {'k': [1, 'é"', none, true]} | tojson }}
{{ messages | map(attribute='role') | list | length }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{%- if messages[0].content.startswith('You') and messages[0].content[:3] ~ 1 == 'You1' %} polite{% endif %}
{{ [3, 1, 2] | sort | first }} {{ 7 // 2 }} {{ 2 * loop_scale | default(4) }} {{ 'x' if undefined_name else 'y' }}
    {% if true %}
    indented
    {% endif %}
end
""",
}

CHATS = [
    [("system", "You are terse.\n"), ("user", "  Hi there! ")],
    [("user", "What is 2 + 2?"), ("assistant", "<think>\nsum</think>\n\n4"), ("user", "Danke, naïve 东京 & <b>")],
    [("assistant", "I begin."), ("user", "No.")],
]

WHEN = datetime(2024, 2, 29, 12, 34, 56)


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: WHEN.strftime(form)
    cases = []
    for name, source in TEMPLATES.items():
        for chat in CHATS:
            for prompt in [False, True]:
                messages = [{"role": role, "content": content} for role, content in chat]
                case = {"template": name, "messages": messages, "add_generation_prompt": prompt}
                try:
                    case["text"] = env.from_string(source).render(
                        messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
                    )
                except jinja2.exceptions.TemplateError as error:
                    case["refused"] = str(error)
                cases.append(case)
    result = {"versions": {"jinja2": jinja2.__version__}, "templates": TEMPLATES, "cases": cases}
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "chat-styles.json"), "w") as out:
        json.dump(result, out, indent=1)
        out.write("\n")


main()
