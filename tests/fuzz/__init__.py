"""Random input, thousands of cases: each ends well or in one line for the user, within seconds.

A module of this package with a function ``case(random, folder)`` is an area: it makes one input from ``random``, in the
empty folder ``folder``, and gives it to the code as a command would. Returning and raising UserError are both right.
"""
