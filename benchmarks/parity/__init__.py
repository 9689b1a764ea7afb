"""Our step beside Meta's dino and dinov2 in one process: equal weights, crops, masks and drop-path choices.

`python -m benchmarks.parity --dino CHECKOUT --dinov2 CHECKOUT` from the repository root. Their code is read from
checkouts outside this repository and runs as published; `shim.py` lists all that is put around it.
"""
