"""Takes a fine-tune to where it runs: GGUF files for llama.cpp and Ollama, and a check of merged weights.

    export_gguf("orders", ("q8_0",), Path("orders-gguf"), ledger=ledger)
    check_weights("base", "adapter", "merged").same
"""

from aftertune.deploy.export import GgufExport, export_gguf
from aftertune.deploy.merged_weights import WeightsCheck, check_weights

__all__ = ["GgufExport", "WeightsCheck", "check_weights", "export_gguf"]
