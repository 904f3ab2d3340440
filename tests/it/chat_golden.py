"""Makes chat_golden.json: what transformers' apply_chat_template makes of conversations, for templates of the shapes that
public models have.

Ran with transformers 5.24.0 over SAMI_TEST_DATA's stories260K, for its tokenizer:
python tests/it/chat_golden.py DATA/models/stories260K > tests/it/chat_golden.json
"""

import json
import sys

from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    # Llama 3: headers, trimmed contents, a date that is used only where the renderer has one.
    "headers": """{{- bos_token }}
{%- if not date is defined %}
    {%- set date = "1 Jan 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = "" %}
    {%- set rest = messages %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{{- "Today: " + date + "\\n\\n" + system + "<|eot|>" }}
{%- for message in rest %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    # Mistral: turns must alternate, the system's words go before the first or last user's.
    "brackets": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user and assistant') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"].strip() + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    # Qwen, ChatML: a default system message, thoughts cut off, a namespace that looks for the last query.
    "chatml": """{%- set ns = namespace(last=-1, multi=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{- content.rstrip() + '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # Zephyr, older: blocks on lines of their own, which the settings of the renderer eat up.
    "lines": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
    {% if not loop.first %}{% break %}{% endif %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    # Macros, JSON, Python's methods.
    "methods": """{%- macro turn(role, text) -%}
<{{ role.upper() }}>{{ text.replace("a", "b", 1).title() if role == "system" else text }}</{{ role | upper }}>
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
    {{- turn(message.get('role', 'none'), message['content']) -}}
    {%- if message.get('missing') is none %}!{% endif -%}
{%- endfor -%}
{%- for key, value in {"b": [1, 2.5, "ü<>'"]}.items() -%}
    {{- key }}: {{ value | tojson -}}
    {{- "\\n" ~ ({"x": value} | tojson(indent=2)) -}}
{%- endfor -%}
{%- set words = messages[-1]['content'].split() -%}
{{- words | join("_") ~ words[0].lower().count("e") ~ messages[0]['content'].find("e") ~ ", ".join(["x", "y"]) -}}
{%- if add_generation_prompt %}<ASSISTANT>{% endif -%}
""",
}
CONVERSATIONS = [
    [{"role": "user", "content": "  Tell me a story. \n"}],
    [{"role": "system", "content": "be brief and glad"}, {"role": "user", "content": "Why {{ x }} <b>?"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>hm</think>\n\nOne it is. \n"},
        {"role": "user", "content": "The end\nof it"},
    ],
    [{"role": "assistant", "content": "I begin"}],
]

tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
cases = []
for name, template in TEMPLATES.items():
    texts = []
    for conversation in CONVERSATIONS:
        try:
            texts.append(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, add_generation_prompt=True))
        except Exception as error:
            texts.append({"error": str(error)})
    ids = tokenizer.apply_chat_template(CONVERSATIONS[0], chat_template=template, add_generation_prompt=True, return_dict=False)
    cases.append({"name": name, "template": template, "texts": texts, "ids": ids})
print(json.dumps({"conversations": CONVERSATIONS, "cases": cases}, indent=1, ensure_ascii=False))
