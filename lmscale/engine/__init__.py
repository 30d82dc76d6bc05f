"""DeepSpeed ZeRO 0 to 3 behind a small surface: accumulate a step's gradient, then update.

::

    objective(model) ──build_engine──→ Engine ──accumulate(losses, targets=…)──→ gradient
                                          └─────update(learning_rate=…)──→ gradient's norm

``config/deepspeed_config.py`` spells DeepSpeed's keys; ``masters.py`` alone knows where each ZeRO
stage keeps fp32 weights; ``optimizer.py`` says which optimizer updates which parameter;
``muon.py`` is Muon over every stage; ``schedule.py`` the learning rate as a function of the step.
The first call to read is ``Engine.accumulate``. Outside of this folder and ``checkpoint/`` nothing
knows DeepSpeed.
"""
