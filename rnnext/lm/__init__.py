"""A word-level language model: `rnnext train`, `rnnext evaluate`, `rnnext generate`.

Where to look, in the order in which a run passes through:

==================  ====================================================
options.py          what can be asked for, and which values make no sense
data.py             text to three lists of lines: train, valid, test
vocabulary.py       lines to numbers and back
batches.py          numbers to parallel streams, streams to BPTT windows
cells.py            what --cell names: built-in layers, a class in a file
model.py            embedding, recurrent layers, decoder
trainer.py          the loop: one step, one epoch, the learning rate
train.py            the command around the loop, from options to result
perplexity.py       the exact loss of a text
evaluate.py         the command that prints it
generate.py         sampling, and the command that prints a text
run_folder.py       every file a run leaves behind, written and read
report.py           progress bar, log lines
plot.py             the curves
machine.py          threads, device, versions
errors.py           what the user can mend, said in one line
==================  ====================================================
"""
