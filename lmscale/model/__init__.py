"""Families of models: tensors in, hidden states out. The model knows no data and no loss.

    settings, sizes ─ build_model ─→ Model ─ train/initial.py ─→ trained by an objective
                  └── account_model ─→ Account: parameters, FLOPs, before anything is built

    begins ─ model.lay_out ─→ layout ┐
    ids ─────────────────────────────┴─ model ─→ hidden states ─ model.head(…, score) ─→ sums

``family.py`` is the contract that every family fulfils, and the first file to read; ``decoder.py``
is the family of GPT, Llama and Qwen, ``encoder.py`` that of BERT, ``encoder_decoder.py`` that of T5
and BART, made of the parts beside them, ``recurrent.py`` that of LSTMs. Every module declares the
kinds and the initial values of its parameters (``initialize.py``).
"""
