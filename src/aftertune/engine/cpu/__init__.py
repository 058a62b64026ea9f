"""Compiled kernels, packed weights and fused layers for a CPU. README.md says what is where and when it is used.

This module imports nothing, so `aftertune doctor` can ask availability.py without loading transformers.
"""
