"""llama.cpp itself, asked in a process of its own: where it gives up, it ends its process.

``python -m lmscale.exchange.llama_cpp_child PID`` reads one JSON object from its input and
writes the answer, or the speeds of ``files``, as the last line of its output. ``llama_cpp.py`` asks
it; it ends with the process PID, which started it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

from lmscale.watch.parent import end_with_parent


def open_server(path: str, *, context: int, threads: int) -> Any:
    """A server of the file, on the CPU, that keeps keys and values in f32."""
    import xllamacpp as untyped

    xllamacpp: Any = untyped
    wanted = xllamacpp.CommonParams()
    wanted.model.path = path
    wanted.n_ctx = context
    wanted.n_parallel = 1
    wanted.n_gpu_layers = 0
    wanted.warmup = wanted.fit_params = False  # it would try how much fits into memory
    wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
    wanted.verbosity = 1
    return xllamacpp.Server(wanted)


def post(server: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the server answers; never by a proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = server.listening_address + path
    content = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), content)
    with direct.open(request) as reply:
        return json.load(reply)


def answer(server: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens and the likeliest tokens' log-probabilities after each prompt; ids of texts."""
    continued = []
    for prompt in question["prompts"]:
        reply = post(
            server,
            "/completion",
            {
                "prompt": prompt,
                "n_predict": question["count"],
                "temperature": -1,  # the likeliest, and probabilities of the logits as they are
                "n_probs": question["top"],
                "return_tokens": True,
                "cache_prompt": False,
                "logit_bias": [[number, False] for number in question["never"]],
            },
        )
        likeliest = [
            [(each["id"], each["logprob"]) for each in token["top_logprobs"]]
            for token in reply["completion_probabilities"]
        ]
        continued.append({"tokens": reply["tokens"], "likeliest": likeliest})
    texts = [
        post(
            server,
            "/tokenize",
            {"content": text, "add_special": False, "parse_special": False},
        )["tokens"]
        for text in question["texts"]
    ]
    return {"continued": continued, "texts": texts}


def time_files(question: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of each file, [reading the prompt, writing], in rounds of one after the
    other. By llama.cpp's own clock; a round that is not counted comes first.
    """
    options = {"context": question["context"], "threads": question["threads"]}
    servers = [open_server(path, **options) for path in question["files"]]
    rates: list[list[list[float]]] = [[] for _ in servers]
    for round_number in range(question["rounds"] + 1):
        for number, server in enumerate(servers):
            reply = post(
                server,
                "/completion",
                {
                    "prompt": question["prompt"],
                    "n_predict": question["count"],
                    "temperature": -1,
                    "ignore_eos": True,
                    "cache_prompt": False,
                },
            )
            timings = reply["timings"]
            if round_number:
                row = [timings["prompt_per_second"], timings["predicted_per_second"]]
                rates[number].append(row)
    return {"rates": rates}


def main() -> None:
    end_with_parent(int(sys.argv[1]))
    question = json.load(sys.stdin)
    if "files" in question:
        reply = time_files(question)
    else:
        options = {"context": question["context"], "threads": question["threads"]}
        reply = answer(open_server(question["path"], **options), question)
    print(json.dumps(reply), flush=True)
    os._exit(0)  # its threads would be waited for


if __name__ == "__main__":
    main()
