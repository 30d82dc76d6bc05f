"""Builds of data folders: by one process, or by tasks that share the work and survive kills.

Corpus and shards each describe a folder to make as a ``Target`` (target.py), cut into units that
follow from the inputs alone, and hand it to a ``Builder`` (building.py)::

    Target ──→ Builder.build(task) ──→ units, in processes (processes.py)
                   │                        │
                   │                        └→ a marker for each task (finishing.py)
                   └→ the last task: a lock (takeover.py) → the folder whole (finishing.py)

The first call to read is ``Builder.build``. Layout on disk: docs/formats.md, Unfinished builds.
"""
