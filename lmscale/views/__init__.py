"""Looking inside a trained model: what comes out are numbers by token, tables and pictures.

In: a run's model and a text. Out: how the text is cut (``sides.py``), which words a word looks at
(``attention.py``, drawn by ``attention_picture.py``), and what the model takes for likely in a
place (``likely.py``).
"""
