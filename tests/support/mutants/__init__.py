"""Mutants: the library with one small mistake in it, to see whether a test notices. By hand, never in CI.

    make mutants SAMPLE=400 SEED=1 FILES="lycoris_algos/structures lycoris_algos/adapters/lokr.py:70"

``edits`` makes the mistakes, ``trials`` runs tests with one of them, ``__main__`` draws a sample and counts.
The working tree stays as it is: a mutant lives in the memory of the process that tries it.

Why not mutmut or cosmic-ray: mutmut (3.8) leaves properties and class data alone, which is where this library
says what an algorithm is (``exact_rank``, ``row_unit``, ``needs_weight``). cosmic-ray (8.7) starts Python and
the whole test command for each mutant, has no choice of tests for it, and never removes a statement.
"""
