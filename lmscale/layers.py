"""The only statement of the order of the folders.

A folder imports itself, the shared folders, and folders above it; imports inside functions and for
type checking count. Among the shared ones the same holds. ``tests/test_layers.py`` enforces it.
``launcher`` stands outside: it imports the standard library, yaml, jinja2 and the folders named in
``LAUNCHER_MAY_IMPORT``; only a node's probe (preflight/node_probe.py) loads torch.
"""

SHARED = (
    "errors",
    "layers",
    "files",  # bytes and paths: atomic writes, rows of JSON, locks, places elsewhere
    "config",  # what is written in YAML
    "ranks",  # which rank among how many, and how they talk
    "watch",  # does it still move: heartbeats, watchdog, stacks
    "runs",  # the run folder: lease, attempts, logs, trackers, goodput
)

LAYERS = (
    "tasks",  # processes of a build, and who takes over from whom
    "corpus",  # raw files → cleaned documents
    "tokenizer",  # documents, or another program's model → a tokenizer
    "shards",  # documents → tar shards of tokens
    "stream",  # shards → the global order of samples → micro-batches
    "finetune",  # a base, labelled files and a task → the configuration of a run
    "plan",  # a configuration and a machine → what the run will need
    "model",  # tokens → hidden states; knows no data
    "metrics",  # answers and what they should have been → counts and figures
    "objective",  # a micro-batch and a model → sums and their counts
    "engine",  # DeepSpeed: parameters, optimizer, schedule
    "checkpoint",  # the engine's state ↔ fragments on disk
    "history",  # what a run has been through
    "evaluation",  # a trained model → figures and text
    "views",  # a trained model → what it looks at, and takes for likely
    "exchange",  # models in the formats of other programs
    "compress",  # a trained model → a smaller one, and what that costs
    "guard",  # a step's figures → a verdict, a way back
    "train",  # the loop, and what follows a step
    "api",  # what programs of one's own may rely on
    "cli",
)

# Which files may import a vendor's library: each enters by one or two named places.
VENDORS = {
    "sentencepiece": ("tokenizer/", "exchange/sentencepiece_json.py"),
    "tokenizers": ("tokenizer/",),
    "gguf": ("exchange/gguf_",),
    "xllamacpp": ("exchange/llama_cpp_child.py",),
    "webdataset": (),  # importing it loads torch; the tests read our shards with it
    "deepspeed": ("engine/", "checkpoint/"),
    "lm_eval": ("evaluation/harness.py",),
    "datasets": ("evaluation/harness.py",),
    "sacrebleu": ("metrics/written.py",),
    "tensorboard": ("runs/",),
    "transformers": ("exchange/",),
    "torch.utils.tensorboard": ("runs/",),
    "PIL": ("evaluation/confusion_picture.py",),
    "peft": ("exchange/",),
}

# What must load without torch: planning and launching happen on login nodes.
TORCH_FREE = (
    *("errors", "layers", "files", "config", "watch", "runs"),
    *("tasks", "corpus", "tokenizer", "shards", "stream", "finetune", "plan", "metrics"),
    "history",
)
LAUNCHER_MAY_IMPORT = ("errors", "files", "config", "ranks", "watch", "runs", "plan")
