"""A dataset of videos as a dataset of latents: planned first, encoded by many processes, resumed after any crash.

    source -> rows -> probes -> plan of clips -> batches -> workers -> shards -> ledger -> index

A clip is known by its identity, a hash of all that its numbers follow from. What is done is what the ledger holds, and
the ledger holds what is on the disk.
"""
