"""The parts of benchmarks/gpu_proof.py, one file each."""
