"""Answers and what they should have been → counts that may be added, and figures made of them.

Pure functions over numpy and text: no module here loads torch or knows a model. ``classification``
counts how often a class was taken for another one, and ``entities`` the named entities that a
sequence of tags spells. ``written`` compares texts with those that were wanted: BLEU, chrF,
ROUGE-L, exact matches; ``answers`` those that stand in a text, as SQuAD and CMRC 2018 do; ``spans``
finds runs of tokens again, in any number of others; ``personal`` knows personal data by its form;
``chance`` says how sure a share or a mean is.
"""
