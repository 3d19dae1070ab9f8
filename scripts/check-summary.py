#!/usr/bin/env python3
"""Checks that a summary of kms-bench has every name, each a positive number: check-summary.py summary.json"""

import json
import math
import sys

NAMES = """wrap_vs_echo_c256 wrap_vs_echo_mem_c64 wrap_vs_echo_mem_c256 batch_items_vs_token unwrap_vs_wrap
server_cpu_us_per_wrap audit_wait_p50_vs_fsync seal_vs_age idle_rss_mib restart_ready_ms wrap_vs_echo_c64
fdatasync_p50_us""".split()

with open(sys.argv[1], encoding="utf-8") as file:
    summary = json.load(file)
wrong = [name for name in NAMES if name not in summary]
for name, value in summary.items():
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        wrong.append(name)
if wrong:
    sys.exit(f"check-summary: missing or no positive number: {' '.join(wrong)}")
print(f"check-summary: {len(summary)} figures are there")
