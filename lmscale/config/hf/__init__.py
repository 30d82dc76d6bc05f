"""The section ``model`` ↔ the config.json of a model of Hugging Face's transformers. No torch.

::

    section ──choose_architecture (choose.py)──→ Architecture, whose ``render`` gives config.json
    config.json ──read_section (choose.py)─────→ the section, or all that it cannot be

An ``Architecture`` (architecture.py) is one ``model_type`` there: how its settings are called, and
how its tensors are. It can express a section if what it renders reads back as that section, so that
no list of combinations exists. The tensors themselves are moved by ``lmscale/exchange``.
"""
