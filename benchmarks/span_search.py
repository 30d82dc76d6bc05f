"""How fast spans are looked for in shards, and in how much memory: the rate in docs/answering.md.

    OMP_NUM_THREADS=1 python benchmarks/span_search.py

Drawn tokens of a Zipfian vocabulary in blocks of a million, as a shard's are, and 600 texts of 50
tokens, half of them taken from there.
"""

from __future__ import annotations

import resource
import time

import numpy as np

from lmscale.metrics.spans import SpanSearch

LENGTHS, BLOCK, BLOCKS, TEXTS, WIDTH, VOCABULARY = (10, 20, 50), 2**20, 8, 600, 50, 32_000


def main() -> None:
    generator = np.random.Generator(np.random.Philox(0))
    share = 1 / np.arange(1, VOCABULARY + 1)
    draws = generator.choice(VOCABULARY, size=BLOCK + TEXTS * WIDTH, p=share / share.sum())
    block, drawn = np.split(draws.astype(np.uint16), [BLOCK])
    texts = drawn.reshape(TEXTS, WIDTH).copy()
    for row in range(0, TEXTS, 2):
        begin = int(generator.integers(BLOCK - WIDTH))
        texts[row] = block[begin : begin + WIDTH]
    searches = [SpanSearch(texts.tolist(), size) for size in LENGTHS]
    ends = np.arange(1000, BLOCK + 1, 1000)  # of documents
    begun = time.process_time()
    for number in range(BLOCKS):
        for search in searches:
            search.look(np.roll(block, number), ends)
    seconds = time.process_time() - begun
    met = [sum(bool(found.any()) for found in search.of_texts()) for search in searches]
    print(f"{BLOCK * BLOCKS / seconds / 1e6:.1f} M tokens a second of one core's time")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")
    print(f"texts with a span of {LENGTHS} tokens: {met} of {TEXTS}")


if __name__ == "__main__":
    main()
