"""One algorithm a file, each in under 60 lines: ``python -m examples.sb3_dqn`` trains and compares.

Every module has ``make()``, the environment in the form that its algorithm takes, and
``learn(steps, seed)``, which returns what acts: a function of an observation and its environment.
"""
