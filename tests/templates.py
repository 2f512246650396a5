"""Chat templates of the tiny models: each writes turns, pictures and thoughts as its family's own does."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '@IMAGE@' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Of a model that can think: a response behind the last question has a block of thoughts, empty where it has none; when
# the talk goes on, the block is dropped. Without being told, the prompt opens a block and leaves it open.
THINKING = (
    "{% set last = namespace(question=-1) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = namespace(value='') %}"
    "{% if m['content'] is string %}{% set text.value = m['content'] %}{% else %}"
    "{% for part in m['content'] %}{% set text.value = text.value + ("
    "'<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text']) %}"
    "{% endfor %}{% endif %}"
    "{% set words = text.value | trim %}{% set thoughts = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in words %}"
    "{% set thoughts = words.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{% set words = words.split('</think>')[-1] | trim %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > last.question %}"
    "{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}{{ words + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
# The same of a model that always thinks: it cannot be told not to.
ALWAYS_THINKING = THINKING.replace(
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}", ""
)
SMOL = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

#: The system's words go in front of the first question; white space around a message is dropped.
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% set first = namespace(words='') %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set first.words = m['content'][0]['text'] + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + first.words }}"
    "{% set first.words = '' %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{{ '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

#: Turns of no name: a question is wrapped, an answer ends with the end of text. Where nobody gives a system message the
#: template has one; questions and answers alternate; a picture is written in front of the text beside it.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% set said = 'Answer shortly.' %}{% set talk = messages %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set said = messages[0]['content'][0]['text'] %}{% set talk = messages[1:] %}{% endif %}"
    "{{ '[SYSTEM_PROMPT]' + said + '[/SYSTEM_PROMPT]' }}{% for m in talk %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('questions and answers must alternate') }}{% endif %}"
    "{% set parts = m['content'] %}"
    "{% if parts | length == 2 %}{% set parts = parts | sort(attribute='type') %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST]' }}{% endif %}"
    "{% for part in parts %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '[/INST]' if m['role'] == 'user' else eos_token }}{% endfor %}"
)
# Thoughts in an answer are dropped; asking for them is a token in front of the system's words, which have to be a
# string. Of the large sizes the prompt of an answer without thoughts has an empty block of them.
_GEMMA4 = (
    "{{ bos_token }}{% set talk = messages %}{% set think = enable_thinking is defined and enable_thinking %}"
    "{% if think or messages[0]['role'] == 'system' %}{{ '<|turn>system\n' }}"
    "{% if think %}{{ '<|think|>\n' }}{% endif %}{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] | trim }}{% set talk = messages[1:] %}{% endif %}{{ '<turn|>\n' }}{% endif %}"
    "{% for m in talk %}{{ '<|turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif m['role'] == 'assistant' %}{% set kept = namespace(text='') %}"
    "{% for piece in part['text'].split('<channel|>') %}"
    "{% set kept.text = kept.text + piece.split('<|channel>')[0] %}{% endfor %}{{ kept.text | trim }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}@EMPTY@{% endif %}"
)
_EMPTY_CHANNEL = "{% if not think %}{{ '<|channel>thought\n<channel|>' }}{% endif %}"
GEMMA4_TEMPLATE = _GEMMA4.replace("@EMPTY@", "")
GEMMA4_LARGE_TEMPLATE = _GEMMA4.replace("@EMPTY@", _EMPTY_CHANNEL)
