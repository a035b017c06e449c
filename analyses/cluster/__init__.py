"""A study spread over the workers of a Ray cluster: its units, what is given to whom, and what becomes of it.

`units` decides, without Ray; `worker` does a unit in its process; `driver` brings the two together.
"""
