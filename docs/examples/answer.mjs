// Answer a question about a picture from an exported folder, with transformers.js under Node.
//
//     npm install @huggingface/transformers
//     node answer.mjs FOLDER PICTURE "What is in the picture?"
//
// The folder is read as it lies on the disk; nothing is fetched.
import path from 'node:path';
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from '@huggingface/transformers';

const [folder, picture, question] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const name = path.basename(path.resolve(folder));

const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name);

const messages = [{ role: 'user', content: [{ type: 'image' }, { type: 'text', text: question }] }];
const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
const image = await RawImage.read(picture);
// LLaVA's processor takes the picture first, the others the text
const llava = model.config.model_type.startsWith('llava');
const inputs = llava ? await processor(image, prompt) : await processor(prompt, image);

const output = await model.generate({ ...inputs, max_new_tokens: 64, do_sample: false });
const written = output.slice(null, [inputs.input_ids.dims.at(-1), null]);
console.log(processor.batch_decode(written, { skip_special_tokens: true })[0].trim());
