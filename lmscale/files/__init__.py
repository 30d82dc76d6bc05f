"""Bytes and paths, without torch and without knowledge of runs. One hand for each thing:

- ``atomic``: a file or folder is whole or absent; disk errors in words
- ``reading``: only plain files, and only what was written into them
- ``jsonl``: rows appended by a run, read after any kind of end; the end of a long file
- ``locks``: one user of a file at a time
- ``locations``: is it a path or a URL; ``remote``: URLs read with retries
- ``cache``: one copy of a remote file for all processes of a node, bounded
- ``shard_files``: are a dataset's shards there
- ``private_folder``, ``strangers``, ``redact``: what other users must not change, send or see
- ``run_files``: names in a run's folder; ``fault_points``: where tests let things fail
"""
