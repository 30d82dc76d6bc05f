"""The switches make T5 and BART: settings, logits, loss and gradients are those of Hugging Face's
modules, which read our random weights from files.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from theirs import compare_gradients, difference, draw_weights, import_transformers, open_theirs

from lmscale.config.hf.architecture import canonical
from lmscale.config.hf.choose import ARCHITECTURES, choose_architecture, read_section
from lmscale.config.model import EncoderDecoderConfig, Sizes
from lmscale.exchange.rules import find_left_out
from lmscale.model.encoder_decoder import EncoderDecoder
from lmscale.model.family import build_model

import_transformers()
VOCAB, START = 97, 2  # the id that stands before the target
SIZES = Sizes(vocab_size=VOCAB, max_positions=40, sequence_length=40)
SHAPE = {"layers": 2, "width": 48, "heads": 4, "ffn_width": 80, "dropout": 0.1}
T5 = SHAPE | {"head_width": 16, "relative_distance": 24}  # less than the sequences are long
BART = SHAPE | {
    "positions": "learned", "norm": "layernorm", "norm_eps": 1e-5, "norm_first": False,
    "activation": "gelu_exact", "bias": True, "scaled_logits": False,
}  # fmt: skip
CASES = {
    "t5": ("t5", T5),
    "t5 by tanh, one decoder layer": ("t5", T5 | {"activation": "gelu", "decoder_layers": 1}),
    "t5 gated untied": ("t5", T5 | {"activation": "geglu", "tied_embeddings": False}),
    "t5 gated tied": ("t5", T5 | {"activation": "geglu"}),
    "ul2": ("t5", T5 | {"activation": "swiglu", "tied_embeddings": False}),
    "mt5": ("mt5", T5 | {"activation": "geglu", "tied_embeddings": False}),
    "bart": ("bart", BART),
}


@pytest.mark.filterwarnings("ignore")  # theirs, of tied weights
@pytest.mark.parametrize("case", CASES)
def test_settings_logits_loss_and_gradients_are_theirs(case, tmp_path):
    model_type, settings = CASES[case]
    section = EncoderDecoderConfig(family="encoder_decoder", **settings)
    architecture = ARCHITECTURES[model_type]
    assert not architecture.exports or choose_architecture(section, SIZES) is architecture
    ours = build_model(section, SIZES).eval()
    assert isinstance(ours, EncoderDecoder) and not find_left_out(architecture, ours)
    draw_weights(ours)
    special = {"decoder_start_token_id": START, "pad_token_id": 0, "eos_token_id": 1}
    theirs, rules = open_theirs(tmp_path, ours, architecture, section, SIZES, **special)
    assert canonical(read_section(theirs.config.to_dict(), "it")[1]) == canonical(section)

    ids_BS, labels_BT = torch.randint(4, VOCAB, (3, 37)), torch.randint(4, VOCAB, (3, 21))
    lengths_B = torch.tensor([37, 20, 30])
    keep_BS = torch.arange(37) < lengths_B[:, None]
    source = ours.lay_out(
        torch.zeros(3, 37, dtype=torch.bool), mask_documents=False, lengths_B=lengths_B
    )
    layout = ours.lay_out_target(torch.zeros(3, 21, dtype=torch.bool), ids_BS, source)
    logits_BTV = ours.head(ours(F.pad(labels_BT[:, :-1], (1, 0), value=START), layout))
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())
    output = theirs(input_ids=ids_BS, attention_mask=keep_BS.long(), labels=labels_BT)
    assert difference(logits_BTV, output.logits) < 1e-5
    assert float(loss) == pytest.approx(float(output.loss), rel=1e-5)
    loss.backward()
    output.loss.backward()
    compare_gradients(ours, theirs, rules)
