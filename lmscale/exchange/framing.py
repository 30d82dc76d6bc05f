"""What stands around a text that a model reads, as around the texts that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.config.supervised import LabelledConfig
from lmscale.stream.ledger import has_read, load_bos
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer, build


@dataclass(frozen=True, kw_only=True)
class Framing:
    """The ids around a text, or around two; and which ids have a part in it."""

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    """Behind the first of two texts."""
    after: tuple[int, ...] = ()
    """Behind the last text."""
    is_known: bool = True
    """Whether the run says what stands there. It does not if it has trained nothing yet: then it is
    what the tokenizer's own file says.
    """
    has_types: bool = False
    """Whether the model is told which tokens are of the second text."""
    roles: Mapping[str, int]
    """Their names of parts, such as ``bos_token``; one that the run does not have is not there."""

    def frame(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """The ids that the model reads."""
        rest = [] if second is None else [*self.between, *second]
        return [*self.before, *first, *rest, *self.after]


def plan_framing(
    config: RunConfig, tokenizer: Tokenizer, *, begins_with_bos: bool | None
) -> Framing:
    """Of a run whose documents begin with bos or not; None: it has read none.

    Decoders, where a text goes on: bos and the text. Decoders of classes: a document as the shards
    have it. Encoders: the same, or [CLS] and [SEP] where the objective adds them. Encoder-decoders:
    a document and the objective's end, behind which they end what they write, too; of pairs, a text
    without its document's bos and eos.
    """
    ids, specials, family = config.objective_ids, tokenizer.special_ids, config.model.family
    bos = [specials["bos"]] if begins_with_bos and "bos" in specials else []
    eos = tokenizer.eos_id
    roles = {f"{name}_token": specials[name] for name in ("eos", "unk", "pad") if name in specials}
    if bos or (begins_with_bos is None and "bos" in specials):
        roles["bos_token"] = specials["bos"]
    roles |= {"mask_token": ids["mask"]} if "mask" in ids else {}
    before, between, after = bos, [], []
    if family == "encoder":
        after = [eos]
        if "cls" in ids:
            before, between, after = [ids["cls"]], [ids["sep"]], [ids["sep"]]
        roles |= {"cls_token": before[0]} if before else {}
        roles |= {"sep_token": after[0]}
    elif isinstance(config.objective, LabelledConfig):
        after = [eos]  # by which a decoder tells the class of what stands before it
    elif "end" in ids:
        before, after = ([], []) if config.window.has_pairs else (bos, [eos])
        after = [*dict.fromkeys([*after, ids["end"]])]  # T5's end is its eos: one
        roles["eos_token"] = ids["end"]
    return Framing(
        before=tuple(before),
        between=tuple(between),
        after=tuple(after),
        is_known=begins_with_bos is not None,
        has_types=getattr(config.model, "token_types", 0) > 1,
        roles=roles,
    )


def keep_pair(framing: Framing, tokenizer: Tokenizer) -> Framing:
    """With what a tokenizer that came in puts between two texts, where the run says nothing of
    that and one text stands as its file has it: ``[CLS] A [SEP] B [SEP]``.
    """
    if framing.between or not framing.is_known or not isinstance(tokenizer, HuggingFaceTokenizer):
        return framing
    library, text = build(tokenizer.rules), tokenizer.encode("a").tolist()
    head, tail = [*framing.before, *text], [*text, *framing.after]
    if not text or library.encode("a").ids != framing.frame(text):
        return framing
    pair = library.encode("a", "a").ids
    end = len(pair) - len(tail)
    if end < len(head) or pair[: len(head)] != head or pair[end:] != tail:
        return framing
    return replace(framing, between=tuple(pair[len(head) : end]))


def find_beginning(run_folder: Path, tokenizer: Tokenizer) -> bool | None:
    """Whether the documents that a run has read begin with bos; None: it has read none, and what
    stands around a text is as the tokenizer's own file says. Of an import without such a file:
    whether those of its model did.
    """
    bos = load_bos(run_folder)
    is_told = not isinstance(tokenizer, HuggingFaceTokenizer) and bos is not None
    return bos is not None if has_read(run_folder) or is_told else None
