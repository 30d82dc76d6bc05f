"""Where checkpoints lie: a folder, a URL, the disks of the nodes.

::

    open_place(config) ─→ LocalPlace    a folder that all nodes see: RUN/checkpoints, or another
                          RemotePlace   a URL that fsspec knows; files go out in parts, from memory
    open_node_place(…) ─→ NodePlace     another folder on every node, for ``LocalTier``

A ``Place`` lists, reads, writes, commits and deletes checkpoints by their steps; read its methods
in ``place.py`` first. ``run_place.prepare_place`` is what every start does with the run's place.
"""
