"""Other systems doing the job of `benchmarks.jobs.dedup`, each as a process of its own.

Each gives one JSON document, `{"events": N, "seconds": S, "cpu_s": C}`: first event in hand to last one done.
"""
