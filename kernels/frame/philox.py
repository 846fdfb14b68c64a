"""Random numbers that are a function of a seed and a place: Philox4x32 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3", section 4.3)."""

PHILOX_ROUNDS = 7  # The fewest that pass BigCrush (Salmon et al. 2011, table 2).


def philox(seed, c0, c1, c2, c3):
    """The four 32-bit words for the counter (c0, c1, c2, c3), keyed by a 64-bit seed; held in int64 tensors."""
    mask = 0xFFFFFFFF
    key0, key1 = (seed & mask, (seed >> 32) & mask)
    for _ in range(PHILOX_ROUNDS):
        product0, product2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        # Arithmetic shifts, so mask: the products are unsigned 64-bit numbers held in int64.
        c0, c1 = ((product2 >> 32) & mask) ^ c1 ^ key0, product2 & mask
        c2, c3 = ((product0 >> 32) & mask) ^ c3 ^ key1, product0 & mask
        key0, key1 = (key0 + 0x9E3779B9) & mask, (key1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3
