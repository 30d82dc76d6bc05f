"""Ranks: which rank among how many this process is, and how the ranks talk.

ranks.py        Ranks, and how they meet: open_process_group, the first call to read
mesh.py         an axis for each way in which ranks divide the work
device.py       the rank's device, its name and peak
collectives.py  sums, gathered values, errors raised on every rank alike
mailbox.py      notes between threads of different ranks, beside the collectives
fingerprint.py  a hash of tensors that can be added over ranks;  limbs.py sums it in float64
seeding.py      seeds as functions of (purpose, step, rank): no random state is saved
attempt.py      the start of a run that a process belongs to
exits.py        how a process ends, and its code for the batch script
"""
