"""Answer a question about a picture from a folder in the layout `ort-genai`, with onnxruntime-genai.

python answer_genai.py FOLDER PICTURE "What is in the picture?"
"""

import json
import sys

import onnxruntime_genai as og

folder, picture, question = sys.argv[1:4]
model = og.Model(folder)
processor = model.create_multimodal_processor()
tokenizer = og.Tokenizer(model)

messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
prompt = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
inputs = processor(prompt, images=og.Images.open(picture))

settings = og.GeneratorParams(model)
settings.set_search_options(do_sample=False, max_length=1024)
generator = og.Generator(model, settings)
generator.set_inputs(inputs)
written = []
while not generator.is_done():
    generator.generate_next_token()
    written.append(int(generator.get_next_tokens()[0]))
print(processor.decode(written).split("<|im_end|>")[0].strip())
