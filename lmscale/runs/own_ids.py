"""Are the ids of a new run those of its tokenizer, and of the weights that it begins with?"""

from __future__ import annotations

from pathlib import Path

from lmscale.config.run import VOCAB_MULTIPLE, RunConfig
from lmscale.config.token_ids import fold_ids, render_ids
from lmscale.errors import LmscaleError
from lmscale.files.tokenizer_files import KEPT_FOLDER, read_fingerprint, read_vocab_size
from lmscale.runs.commits import read_commits
from lmscale.runs.run_folder import load_run_config


def find_other_tokenizer(config: RunConfig, fingerprint: str) -> str:
    """Why a tokenizer is not the one that a new run goes on with; empty: it may be. Only reads."""
    if not config.run.init_from or read_commits(config.folder):
        return ""
    folder = config.initial.folder
    kept = folder / KEPT_FOLDER
    theirs = read_fingerprint(kept)
    if not theirs or theirs == fingerprint:
        return ""
    return (
        f"run.init_from = {config.run.init_from}: its tokenizer is another one than that of "
        f"tokenizer.folder ({theirs[:12]} and {fingerprint[:12]}), so its embeddings are of other "
        f"tokens. Name that run's: tokenizer.folder: {kept}."
    )


def find_forgotten_ids(config: RunConfig) -> list[str]:
    """Why the objective of a new run would train ids of its own beside those that the run of
    ``run.init_from`` has for the same, of the same tokenizer. Only reads.
    """
    if not config.run.init_from or not config.objective.added_ids or read_commits(config.folder):
        return []
    folder = config.initial.folder
    try:
        before = load_run_config(folder).tokenizer
    except LmscaleError:
        return []  # which whoever reads its weights will tell
    names = config.objective.added_ids
    known = {n: i for n, i in before.number_ids(names).items() if i < before.vocab_size}
    others = {n: i for n, i in config.objective_ids.items() if n in known and i != known[n]}
    own, theirs = map(read_fingerprint, (Path(config.tokenizer.folder), folder / KEPT_FOLDER))
    if not others or own != theirs:
        return []
    first = next(iter(others))
    return [
        f"run.init_from = {config.run.init_from}: there {first} is id {known[first]} of the "
        f"tokenizer, and here the objective would train id {others[first]} for it anew. Write "
        f"tokenizer.ids: {render_ids(fold_ids(known))}."
    ]


def find_idle_rows(config: RunConfig) -> list[str]:
    """Why a new run would train rows of the embedding that no id has: ``tokenizer.vocab_size`` is
    larger than the tokenizer. One that sets ``model.vocab_size`` means them. Only reads.
    """
    wanted = config.tokenizer.vocab_size
    num_pieces = read_vocab_size(Path(config.tokenizer.folder))
    if num_pieces is None or config.model.vocab_size is not None or config.run.init_from:
        return []
    idle = config.vocab_size - num_pieces - len(config.added_ids)
    if num_pieces >= wanted or idle < VOCAB_MULTIPLE or read_commits(config.folder):
        return []
    default = "" if "vocab_size" in config.tokenizer.model_fields_set else ", its default"
    return [
        f"{config.tokenizer.folder} holds a tokenizer of {num_pieces:,} pieces, but "
        f"tokenizer.vocab_size = {wanted}{default}, which makes an embedding of {idle:,} rows too "
        f"many. Set tokenizer.vocab_size to {num_pieces}; rows that are meant to be spare are "
        "model.vocab_size."
    ]
