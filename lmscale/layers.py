"""The only statement of the order of the folders.

A folder imports itself, the shared folders, and folders to its left; imports inside functions
count.
``tests/test_layers.py`` enforces it. ``launcher`` stands outside: it imports the standard library,
yaml, jinja2, ``lmscale.config`` and ``lmscale.errors``, and never torch.
"""

SHARED = ("errors", "layers", "config", "runtime")

LAYERS = (
    "corpus",  # raw files → cleaned documents
    "tokenizer",  # documents → a SentencePiece model
    "shards",  # documents → tar shards of tokens
    "stream",  # shards → the global order of samples → micro-batches
    "model",  # tokens → hidden states; knows no data
    "objective",  # a micro-batch and a model → LossSum
    "engine",  # DeepSpeed: parameters, optimizer, schedule
    "checkpoint",  # the engine's state ↔ fragments on disk
    "train",  # the loop
    "evaluation",  # a trained model → figures and text
    "cli",
)

# Which files may import a vendor's library: each enters by one or two named places.
VENDORS = {
    "sentencepiece": ("tokenizer/",),
    "webdataset": ("corpus/", "shards/", "stream/"),
    "deepspeed": ("engine/", "checkpoint/"),
    "tensorboard": ("runtime/",),
    "torch.utils.tensorboard": ("runtime/",),
}

# What must load without torch: planning and launching happen on login nodes.
TORCH_FREE = ("config", "errors", "layers", "corpus", "tokenizer", "shards", "stream")
