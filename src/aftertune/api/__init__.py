"""The functions of the package, as a program or a notebook calls them.

    import aftertune

    base = aftertune.evaluate("Qwen/Qwen2.5-0.5B", tasks=["hellaswag"], limit=100)
    tuning = aftertune.tune("Qwen/Qwen2.5-0.5B", data=rows, method="lora")
    tuned = aftertune.evaluate("Qwen/Qwen2.5-0.5B", tasks=["hellaswag"], limit=100, adapter=tuning.output)
    aftertune.compare(base, tuned, margin=2)

Each verb of the command line is one function. Its keywords are named like the options and have the same types, defaults
and help (`aftertune.study.spec_options`). Margins are in points. A function uses the ledger that it is given (an open
one, or its path), or the one of the command line. Its errors are those of `aftertune.errors`, with advice for Python.

`tables` makes tables, frames and plots of the values that the functions return. Importing this package imports neither
torch nor transformers.
"""
