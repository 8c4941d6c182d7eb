"""From a network and images to a compressed one that is exported and judged: all stages, one after the other.

`in_memory` is the chain for a module, the command line the one for files.
"""
