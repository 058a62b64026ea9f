"""Takes a fine-tune to where it runs: GGUF files for llama.cpp and Ollama, and a check of merged weights.

    export_gguf("orders", ("q8_0",), Path("orders-gguf"), ledger=ledger)
    check_weights("base", "adapter", "merged").same
    check_gguf("base", "adapter", "model-q8_0.gguf").same
    check_chain("orders", ("adapter", "merged", "gguf:q8_0"), tasks, ledger=ledger, out=Path("orders-deploy")).broken
"""

from aftertune.deploy.chain import Chain, ChainCheck, CheckedLink, check_chain
from aftertune.deploy.chain_gate import GatedLink, gate_chain
from aftertune.deploy.export import GgufExport, export_gguf
from aftertune.deploy.gguf_weights import check_gguf
from aftertune.deploy.merged_weights import WeightsCheck, check_weights

__all__ = ["Chain", "ChainCheck", "CheckedLink", "GatedLink", "GgufExport", "WeightsCheck", "check_chain",
           "check_gguf", "check_weights", "export_gguf", "gate_chain"]
