"""Runs a model: requests in, log-likelihoods and generated texts out.

    engine = Engine(model, tokenizer, packed=True, budget=budget)       # engine.py
    plan = engine.plan(requests)                                        # tokens, packed rows, batches
    for batch in engine.run(plan, done=set()):
        print(batch.responses)

In the order of the work: tokenize, packing, verify, budget and schedule, then scorer and decoder (or hf_generate).
This package imports nothing of lm-eval. docs/architecture.md says more.
"""
