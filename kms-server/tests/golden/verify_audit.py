#!/usr/bin/env python3
"""Verifies an audit file after docs/audit-format.md, independently of the Rust code."""
import hashlib
import json
import sys

DOMAIN = b"kms/audit-chain/v1"
SUFFIX = 150


def verify(path):
    prev, seq, group = "0" * 64, 0, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            assert line.startswith(b'{"entry":') and line.endswith(b'"}\n'), f"line {number}: form"
            entry, suffix = line[9:-SUFFIX], line[-SUFFIX:]
            assert suffix == f',"prev":"{suffix[9:73].decode()}","hash":"{suffix[83:147].decode()}"}}\n'.encode()
            assert suffix[9:73].decode() == prev, f"line {number}: not chained"
            digest = hashlib.sha256(DOMAIN + bytes.fromhex(prev) + entry).hexdigest()
            assert suffix[83:147].decode() == digest, f"line {number}: hash"
            parsed = json.loads(line)["entry"]
            assert parsed["seq"] == seq + 1, f"line {number}: sequence"
            assert parsed["group"] in (group, seq + 1), f"line {number}: group"
            prev, seq, group = digest, parsed["seq"], parsed["group"]
    print(seq, prev)


verify(sys.argv[1])
