"""The command line: one file per group of commands, in the order of the flow.

    corpus.py, tokenizer.py, shards.py, stream.py   the data; data_tasks.py what builds share
    train.py, evaluate.py, generate.py              a run; launch.py starts it, also under Slurm
    checkpoint.py, runs/                            looking at a run, and cleaning up
    config.py, doctor.py, demo.py                   the YAML, the machine, the whole way

``main.main`` is the entry point: it prints an ``LmscaleError`` without a traceback and returns its
exit code. Commands import heavy packages inside their functions, so that ``--help`` loads no torch.
"""
