"""The engine: text requests in, log-probabilities and texts out. Owns the torch side; nothing of lm-eval.

encode (text to tokens) -> trie (rows that share prefixes) -> decide (may rows be packed?) -> schedule
(batches) -> scorer, generator -> runner (the whole, batch by batch).
"""
