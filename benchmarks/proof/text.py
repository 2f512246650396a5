"""The words of the report that no result changes, and how a table is written."""

from __future__ import annotations

from collections.abc import Sequence

HEAD = """\
# The proof

<!-- Written by `python -m benchmarks.proof --report` from benchmarks/proof/results. Do not edit. -->

Does VLsI help? The shipped pair of tiny models and the built-in puzzles are small enough to ask it many times over:
the small model is taught in four ways from the same start, with the same puzzles in the same order and the same number
of optimizer steps, and the paper's ablations are run beside them. Nothing here reproduces a number of the paper, and
a pair of toys says little about real models; what it can tell is whether the method does its work in this program,
and which of its parts matter here. Wins and losses are shown alike.

```bash
python -m benchmarks.proof            # goes on with what is not done yet, then writes this page
python -m benchmarks.proof --list     # what is done, what is left, how long it would take
python -m benchmarks.proof --only e   # one part alone: main, e, d, b, c or f
```

Run it in a clone of the repository with the package installed; started more than once, the processes share the runs.
It can be stopped at any time: every run is stored when it ends, and a run belongs to its settings and to the weights of
the pair, so that results of other weights are never mixed in."""

FIELD = """\
It is made on four fields. On endless puzzles none comes twice: what the student lacks is time. On few puzzles they come
again and again: what it lacks is data, as everyone does. Where some answers in the data are wrong, the large model
knows better than the data; this comes with the reinforcement and without. How few was fixed before any other arm had
seen a finite set, by a rule that knows the scores of SFT alone: of 64, 128, 256 and 512 puzzles the largest number at
which SFT, at the better of two learning rates, ends at least five points below SFT on endless puzzles, on the
validation split. No score of VLsI entered that choice; but that there is a second field at all is because VLsI was
behind on the first. SFT's accuracy in %, mean of two training seeds, by learning rate:"""

NOISE = """\
The third field was added after the first two had been run and written up, because they could not tell what a large
model is worth that knows better than the data: there it says what the labels say. Its share of wrong answers was fixed
by a like rule, before any other arm had seen a wrong answer: of 20, 30 and 40 % the smallest at which SFT, at the
better of the same two rates and with the same two seeds, ends at least five points below SFT on right answers. Each
answer of the training puzzles is wrong with that probability, on its own; a wrong answer is the right one to the same
question about another picture, so that its form gives nothing away. All read the same ones: SFT, both steps of the
other arms, and the verbalizers of both models. The large model itself stays as it is, taught by right answers, and
held-out puzzles have right ones. SFT's accuracy in %:"""

UNREINFORCED = """\
The fourth field was added after the third had been run. Trials on the validation split had shown there that the
interaction alone, of VLsI and of last-layer KLD, teaches much that is not left after the reinforcement on the same
wrong answers ("what does the large model teach where no step on the data comes after?"). So scores of VLsI did choose
this field, and its table tests what they promised: the same wrong answers and as many steps, all of them interaction,
tuned anew, with test puzzles of its own. In it `VLsI` is the method without its last step, not the whole method."""

WHY = """\
## Why it came out so

What was seen, in the tables below and in the trials at the end of this page; the last two points are about data with
wrong answers, the others about the first two fields:

- **At its last layer the large model says nothing but the right answer.** It is always right and nearly always sure, so
  the divergence from it is the cross-entropy on the right answers: the two agree to two or three digits in value, in
  the length of their gradients and in where these point. It has no doubts that could teach anything. Last-layer KLD
  is then SFT in two parts, the first of which trains less of the model.
- **That division costs points by itself.** With cross-entropy on the right answers at the last layer in place of all
  distillation, the two steps still end behind SFT ("Is it the loss, or what trains?"), with one seed by about half of
  what VLsI lacks there: the decoder layers alone train at first, and a short training is cut into two schedules, each
  with its warm-up and decay. With more steps the arms come close to each other.
- **The intermediate layers ask for too much too early.** All target layers of the large model but the first say nearly
  what its last one says (their losses after step 1 stand below), so whichever is drawn, the small model's first layers
  are asked for the final answer. The gradient of these terms is longer than the last layer's throughout. On endless
  puzzles it points less well to what helps on held-out ones, once the student has begun to learn. On few puzzles that
  turns at the end, when the right answers are learnt by heart: there the intermediate terms are the better guide, which
  shows in no score beyond the noise.
- **The matching has little to choose from.** With a temperature of 2 over the spread r of a window, the nearest layer
  is exp(r^2 / 2) times as likely as the farthest. Here r is at most about one nat, mostly hundredths, and every draw is
  nearly even: the strategies of Table 4e are almost one strategy. The paper's losses start at several nats, where the
  same formula makes sharp draws.
- **Few data do not turn it round.** On 64 puzzles the arms end near each other and near the start: what so few puzzles
  teach is little, by whatever loss. On 128, where SFT does learn, VLsI was behind SFT and last-layer KLD in each of
  four trials.
- **Nor does what else was turned.** With target layers from the third on, with a shorter interaction step or with a
  warmer last step, VLsI came at most level with last-layer KLD, and not to SFT (one seed each); likewise with a tenth
  of the weight on the target layers and no reinforcement (three seeds).
- **Where the data are wrong, the interaction is worth points, and the reinforcement loses them.** At every wrong token
  looked at the large model's last layer holds to the right one, nearly surely. Without reinforcement last-layer KLD and
  VLsI end five to six points ahead of SFT, and in the trials at a rate of 0.001 within a point of what they reach on
  right answers: the wrong ones cost them next to nothing. With the method's two steps neither is ahead, and last-layer
  KLD is behind. The reinforcement is cross-entropy on the same wrong answers: it takes some three points from what
  last-layer KLD has before it, where as many more steps of interaction add some six (three seeds). A method that ends
  with the answers in the data needs them right.
- **What helps there is the last layer.** VLsI adds nothing to last-layer KLD that shows in a table, with reinforcement
  or without. After the usual interaction step, before the reinforcement, it stood 0.6 to 3.2 points above it in three
  seeds at one rate; with more steps of either kind that is gone. Its verbalizers learn from the wrong answers too, so
  the large model's layers hold the right token less surely than its last layer does, the first of them at little more
  than even odds.

So on right answers the pair lacks what distillation lives on: a large model that is unsure where the answer is unsure,
and layers that know less than the last one. Whether VLsI helps where both are given, with real models, is not answered
here. A less certain large model was not tried; one would have to be trained for it."""

METHOD = """\
Accuracy is the share of exact greedy answers to held-out puzzles of the test split, one question each, and the mean
over seeds. A difference is paired by seed (same puzzles, same order) with the 95 % interval of Student's t; it is the
spread over training seeds, on one and the same set of test puzzles. Seeds differ much, so where rows have unequal
numbers of them only the differences compare; rows are ranked by these. A test puzzle is asked once in every run of
these tables and in no other.

- `SFT`: cross-entropy on the right answers for all steps, the whole language model trains.
- `last-layer KLD`: the divergence from the large model's last layer for the interaction steps, then SFT.
- `feature L2`: squared differences between the features of matched layers, and of the last ones, through learned
  projections and without verbalizers, for the interaction steps, then SFT.
- `VLsI`: the whole method.

In the field without reinforcement the last three have no SFT after their interaction steps.

Every seed has its own training puzzles. On few puzzles the verbalizers, the large model's too, learn from these same
ones, so that no arm reads more data than another; on endless puzzles, with wrong answers or without, they learn from
others, once for all runs. The fields have different test puzzles; of 500 pictures some 40 are in two of them. Seconds
are processor seconds of one thread for the student's training, the large model's answers included: what the clock would
show on a quiet core. The training of the verbalizers is not counted, as the paper reuses the large model's; no weight
of the student trains then."""

TUNED = """\
The budget is the same for every arm of a field: each rate once on each of the tuning's own training seeds, which no run
of the tables has, measured on the **validation** split. Mean accuracy in %; the chosen rate is bold."""

ABLATIONS = """\
## The paper's ablations, in small

On endless puzzles, the first three seeds. Rows take the rate of the arm that they change: VLsI's; `feature L2`'s where
features are compared; `SFT`'s where nothing is distilled. They are not tuned one by one, which may cost a row some
points against the row that the rate was tuned for. Some rows were run before the losses summed in one walk, others
after; runs of both versions give the same scores (see the trial at the end), but their seconds do not compare."""

LIMITS = """\
## What it does not tell

- Toys: on the weights of a real language model the ways compare as [another page](language.md) has it.
- One pair, and one start of the student: the intervals hold the spread over training puzzles, their order, the
  verbalizers learnt from them and the draws of the matching, and nothing else.
- The interaction step trains the decoder layers alone and SFT the whole language model, as the method has it; equal
  steps are not equal processor time (see the seconds), nor is the training of the verbalizers counted.
- One learning rate serves both steps of an arm, so that every arm has the same trials; two rates might suit better.
- The learning rate of the verbalizers' own training is fixed, and the ablations' rows are not tuned one by one.
- A run repeats to the bit only with the same version of this program and its libraries on the same kind of machine:
  sums in another order may move single runs by some puzzles, within the spread between seeds.
- The wrong answers are of one share and drawn evenly. People and programs err where a question is hard, and alike; a
  large model that learnt from such data errs too, which this one does not.
- The paper's row with beam search in Table 4b is left out: answers are greedy.
- A rank correlation over three to eight rows can be high or low by luck, the more so where the intervals overlap."""


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
