#!/usr/bin/env python3
"""Opens the golden envelopes with nothing but the byte tables of docs/formats.md and FIPS 197 / SP 800-38D.

Independent of the Rust code on purpose: standard library only, AES and GHASH written out. Prints one line a vector and
exits with 1 at the first that does not open to the recorded plaintext.
"""

import base64
import json
import struct
import sys


def _sbox():
    """FIPS 197 section 5.1.1: multiplicative inverse in GF(2^8), then the affine map."""
    p, q, box = 1, 1, [0] * 256
    while True:
        p = p ^ ((p << 1) & 0xFF) ^ (0x1B if p & 0x80 else 0)
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09
        x = q ^ (q << 1 | q >> 7) ^ (q << 2 | q >> 6) ^ (q << 3 | q >> 5) ^ (q << 4 | q >> 4)
        box[p] = (x & 0xFF) ^ 0x63
        if p == 1:
            break
    box[0] = 0x63
    return box


SBOX = _sbox()


def xtime(a):
    return ((a << 1) ^ 0x1B) & 0xFF if a & 0x80 else a << 1


def expand_key(key):
    """FIPS 197 section 5.2 for 256-bit keys: 60 words."""
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    rcon = 1
    for i in range(8, 60):
        word = list(words[i - 1])
        if i % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= rcon
            rcon = xtime(rcon)
        elif i % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(words[i - 8], word)])
    return [sum(words[4 * r : 4 * r + 4], []) for r in range(15)]


def encrypt_block(round_keys, block):
    state = [a ^ b for a, b in zip(block, round_keys[0])]
    for number, round_key in enumerate(round_keys[1:], 1):
        state = [SBOX[b] for b in state]
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if number < 14:
            mixed = []
            for c in range(0, 16, 4):
                a = state[c : c + 4]
                for i in range(4):
                    mixed.append(
                        xtime(a[i]) ^ xtime(a[(i + 1) % 4]) ^ a[(i + 1) % 4] ^ a[(i + 2) % 4] ^ a[(i + 3) % 4]
                    )
            state = mixed
        state = [a ^ b for a, b in zip(state, round_key)]
    return bytes(state)


def gf_multiply(x, y):
    """SP 800-38D section 6.3."""
    z, v = 0, y
    for i in range(127, -1, -1):
        if (x >> i) & 1:
            z ^= v
        v = (v >> 1) ^ (0xE1 << 120) if v & 1 else v >> 1
    return z


def gcm_open(key, iv, aad, sealed):
    """SP 800-38D section 7.2 with a 96-bit IV and a 128-bit tag."""
    ciphertext, tag = sealed[:-16], sealed[-16:]
    round_keys = expand_key(key)
    h = int.from_bytes(encrypt_block(round_keys, bytes(16)), "big")
    pad = lambda data: data + bytes(-len(data) % 16)
    blocks = pad(aad) + pad(ciphertext) + struct.pack(">QQ", 8 * len(aad), 8 * len(ciphertext))
    y = 0
    for i in range(0, len(blocks), 16):
        y = gf_multiply(y ^ int.from_bytes(blocks[i : i + 16], "big"), h)
    mask = encrypt_block(round_keys, iv + b"\0\0\0\1")
    if bytes(a ^ b for a, b in zip(y.to_bytes(16, "big"), mask)) != tag:
        raise ValueError("tag does not fit")
    out = bytearray()
    for i in range(0, len(ciphertext), 16):
        stream = encrypt_block(round_keys, iv + struct.pack(">I", 2 + i // 16))
        out += bytes(a ^ b for a, b in zip(ciphertext[i : i + 16], stream))
    return bytes(out)


def canonical_context(pairs):
    out = b""
    for key, value in sorted((k.encode(), v.encode()) for k, v in pairs.items()):
        out += struct.pack(">I", len(key)) + key + struct.pack(">I", len(value)) + value
    return out


def open_envelope(key, envelope, context):
    magic, form, suite, uid, version = struct.unpack(">2sBB16sI", envelope[:24])
    if (magic, form, suite) != (b"KW", 1, 1):
        raise ValueError("not format 1, suite 1")
    aad = b"kms/wrap/v1" + envelope[:36] + canonical_context(context)
    return uid, version, gcm_open(key, envelope[24:36], aad, envelope[36:])


def main(path):
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)["vectors"]
    for vector in vectors:
        envelope = bytes.fromhex(vector["envelope"])
        text = vector["text"].removeprefix("hfenv1:")
        if base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) != envelope:
            raise SystemExit(f"{vector['name']}: text and binary form differ")
        uid, version, plaintext = open_envelope(
            bytes.fromhex(vector["key"]), envelope, vector["context"]
        )
        found = (uid.hex(), version, plaintext.hex())
        if found != (vector["key_uid"], vector["version"], vector["plaintext"]):
            raise SystemExit(f"{vector['name']}: found {found}")
        print(f"{vector['name']}: ok")
    print(f"{len(vectors)} vectors opened")


if __name__ == "__main__":
    main(sys.argv[1])
