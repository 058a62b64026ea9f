"""The engine: text requests in, log-probabilities and texts out. Owns the torch side; nothing of lm-eval.

encode (text to tokens) -> prefix, trie (what is shared is computed once) -> decide (may rows be packed?) -> schedule
(batches, waves) -> scorer, decoder, generator -> runner (the whole, batch by batch). docs/architecture.md has the rest.
"""
