"""Steps by size: which of them a table is likely to be wrong about by the same factor.

A table errs by rows, and rows differ by tokens: between stairs (GEMM tiles of 16 tokens and more)
one is too slow, the next too fast. So steps are sorted into classes as narrow as a tile where
steps are short, and by an eighth of a doubling beyond.
"""

SIZES = 64
# Tokens of the narrowest class. A step of decodes alone has few tokens, and rows at each power
# of two of them.
PREFILL_TOKENS, DECODE_TOKENS = 16, 4


def size_of(chunk_tokens: int, decodes: int) -> int:
    """The class of a step with so many tokens of prompts and of decodes: 0 .. SIZES - 1.

    Steps with prompts and steps without are counted apart (Correction has factors for either).
    """
    narrowest = PREFILL_TOKENS if chunk_tokens > 0 else DECODE_TOKENS
    size = max(chunk_tokens + decodes - 1, 0) // narrowest
    doublings = 0
    while size >= 16:
        size //= 2
        doublings += 1
    return min(size + 8 * doublings, SIZES - 1)
