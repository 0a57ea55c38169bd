"""Counter-based Gumbel noise: a function of what a token is, never of where it is computed.

A strong key per row (threefry over the row's identity) and a cheap integer hash per vocabulary
id (two rounds of MurmurHash3's 32-bit finaliser): threefry for every element would cost twice
the unembedding on a CPU. Any batch layout, bucket, tile or sharding gives the same bits.
"""

import jax
import jax.numpy as jnp


def fold(keys_M2: jax.Array, words_M: jax.Array) -> jax.Array:
    """Folds one 32-bit word of identity into each row's key, both uint32."""

    def one(key, word):
        folded = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), word)
        return jax.random.key_data(folded)

    return jax.vmap(one)(keys_M2, words_M.astype(jnp.uint32))


def root_keys(seed: int | jax.Array, rows: int) -> jax.Array:
    """The same starting key [M, 2] for every row."""
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return jnp.broadcast_to(key, (rows, 2))


def gumbel(keys_M2: jax.Array, ids_V: jax.Array) -> jax.Array:
    """Standard Gumbel noise [M, V] in float32 for vocabulary ids [V]."""
    return gumbel_at(keys_M2[:, :1], keys_M2[:, 1:], ids_V[None, :])


def gumbel_at(first: jax.Array, second: jax.Array, ids: jax.Array) -> jax.Array:
    """The noise of any arrangement: both halves of the row's key, uint32, broadcast to the ids."""
    bits = _hash(first, second, ids.astype(jnp.uint32))
    # The maximum is decided by small exponentials, so uniforms near 0 must be fine-grained:
    # -log1p(-w) keeps all 32 bits there. w == 1 after rounding gives -inf: never chosen.
    w = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    return -jnp.log(-jnp.log1p(-w))


def _hash(first: jax.Array, second: jax.Array, word: jax.Array) -> jax.Array:
    mixed = _finalise((word * jnp.uint32(0x9E3779B1)) ^ first)
    return _finalise(mixed + second)


def _finalise(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
