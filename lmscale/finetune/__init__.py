"""A pretrained model, labelled files and a task → the whole configuration of a run.

::

    short YAML (config/finetune.py) ─┬─ read_base (base.py): the model, its tokenizer ──┐
                                     └─ survey_data (survey.py): labels, lengths ───────┤
                        RunConfig, with the reason of each choice ←── plan_run (plan.py) ┘
                                     └─ find_frozen (trainable.py): what stays as it is

Loads no torch. What is planned is trained as any run is; there is no second loop. The first call to
read is ``plan_run``; ``lmscale/cli/finetune.py`` does one after the other.
"""
